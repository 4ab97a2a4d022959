//! The session's end of the data path: the descriptors that the root daemon hands over, and the
//! tasks that serve them.

use std::{
    fs::File,
    io,
    net::{TcpListener, UdpSocket},
    sync::Arc,
};

use tp_proto::fault::{Fault, FaultKind};
use tp_root_api::{Datapath, Descriptors};

use self::{aliases::AliasMap, datagrams::Datagrams, tun::Tun};
use super::{
    dns::Dns,
    intercepts::LocalCalls,
    relay::Relay,
    shared::Shared,
    sys::{AliasTable, Heartbeat, Part},
    tasks::Tasks,
};

pub(super) mod aliases;
mod datagrams;
mod newest;
pub(super) mod tun;

/// The descriptors that come with [`tp_root_api::Reply::Opened`], ready to be served.
pub struct Handover {
    datapath: Datapath,
    listener: TcpListener,
    socket: UdpSocket,
    tun: File,
    table: AliasTable,
    heartbeat: Heartbeat,
}

impl Handover {
    /// # Errors
    ///
    /// If the maps among the descriptors cannot be mapped into memory.
    pub fn new(datapath: Datapath, descriptors: Descriptors) -> Result<Self, Fault> {
        let failed = |what: &str, error: io::Error| {
            Fault::new(
                FaultKind::Failed,
                format!("{what} cannot be mapped: {error}"),
            )
        };
        let Descriptors {
            listener,
            udp: socket,
            tun,
            alias_table,
            heartbeat,
        } = descriptors;
        let table = AliasTable::map(&alias_table, datapath.alias_count)
            .map_err(|error| failed("the alias table", error))?;
        let heartbeat =
            Heartbeat::map(&heartbeat).map_err(|error| failed("the heartbeat", error))?;

        Ok(Self {
            datapath,
            listener: listener.into(),
            socket: socket.into(),
            tun: tun.into(),
            table,
            heartbeat,
        })
    }

    pub(crate) fn datapath(&self) -> &Datapath {
        &self.datapath
    }

    /// Relays connections and answers queries until `tasks` end, through the tunnel of `shared`.
    ///
    /// # Errors
    ///
    /// If the runtime cannot use one of the descriptors.
    pub fn serve(self, shared: &Arc<Shared>, tasks: &Tasks) -> io::Result<()> {
        self.serve_with(shared, tasks, LocalCalls::default())
    }

    /// As [`Self::serve`], but for calls to what is intercepted.
    pub(crate) fn serve_with(
        self,
        shared: &Arc<Shared>,
        tasks: &Tasks,
        calls: LocalCalls,
    ) -> io::Result<()> {
        let Self {
            datapath,
            listener,
            socket,
            tun,
            table,
            heartbeat,
        } = self;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let tun = Tun::new(tun)?;
        let aliases = AliasMap::new(table, &datapath);
        let heartbeat = Arc::new(heartbeat);
        let dns = Dns::new(Arc::clone(shared));
        let datagrams = Arc::new(Datagrams {
            dns: Arc::clone(&dns),
            shared: Arc::clone(shared),
            aliases: aliases.clone(),
            tun: tun.clone(),
        });
        let relay = Relay {
            tun,
            listener,
            aliases,
            shared: Arc::clone(shared),
            dns,
            calls: Arc::new(calls),
            heartbeat: Arc::clone(&heartbeat),
        };
        for part in [Part::Relay, Part::Dns] {
            heartbeat.beat(part);
        }
        tasks.spawn("the relay", relay.run(tasks.stop_token().clone()));
        tasks.spawn("the DNS service", datagrams.serve(socket, heartbeat));

        Ok(())
    }
}
