//! One user's session: the kubeconfig, the tunnel, the relay and names. Needs no capability.

use std::time::Duration;

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tp_proto::local::session_server::SessionServer;

mod check;
mod cluster;
mod connection;
mod datapath;
mod dns;
mod exempt;
mod external;
pub mod firewall;
mod intercepts;
mod keeper;
mod local;
mod log;
mod mapped;
mod node;
mod opened_datapath;
mod overlaps;
mod progress;
mod relay;
mod renewal;
mod root_link;
mod service;
mod shared;
mod status;
mod steer;
mod sys;
mod tasks;
mod uplink;

pub use datapath::Handover;
pub use keeper::{KEEPER_FLAG, keep_files};
pub use shared::{ActiveTunnel, Shared};
pub use tasks::Tasks;

/// Bounds the answers under way when the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Bounds the end of a connection.
const END_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct SessionArgs {
    /// What is logged: a level, or directives as of the crate tracing-subscriber
    #[arg(long, env = "TP_LOG", default_value = "info")]
    log: String,
}

/// Serves `tp` at the session's socket until it is told to end.
///
/// # Errors
///
/// If the log, the runtime or the socket cannot be made.
pub fn run(args: SessionArgs) -> anyhow::Result<()> {
    let _log = start_log(&args.log).context("the log cannot be written")?;
    tp_process::raise_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot start")?;
    let result = runtime.block_on(serve());
    // Name look-ups of the system's resolver cannot be interrupted.
    runtime.shutdown_timeout(FLUSH_TIMEOUT);

    result
}

async fn serve() -> anyhow::Result<()> {
    let listener = tp_ipc::Listener::bind(&tp_ipc::socket_path()).await?;
    let unreachable = listener.lost();
    let stop = CancellationToken::new();
    let service = service::Service::new(stop.clone());
    let mut terminate = signal(SignalKind::terminate()).context("no signal handler")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("no signal handler")?;
    let flush = CancellationToken::new();
    let server = tonic::transport::Server::builder()
        .add_service(SessionServer::new(service.clone()))
        .serve_with_incoming_shutdown(listener, flush.clone().cancelled_owned());
    tokio::pin!(server);
    tracing::info!(version = tp_core::VERSION, "Session started");
    tokio::select! {
        served = &mut server => served.context("the session's socket failed")?,
        () = stop.cancelled() => {}
        () = unreachable => tracing::info!("Session's socket gone; nobody can reach it"),
        () = service.supervise() => {}
        _ = terminate.recv() => tracing::info!("Told to end"),
        _ = interrupt.recv() => tracing::info!("Told to end"),
    }
    let ended = async {
        if timeout(END_TIMEOUT, service.end()).await.is_err() {
            tracing::info!("Connection did not end in time");
        }
        flush.cancel();
    };
    let flushed = async { timeout(END_TIMEOUT + FLUSH_TIMEOUT, server).await };
    let (flushed, ()) = tokio::join!(flushed, ended);
    tracing::info!(flushed = flushed.is_ok(), "Session ended");

    Ok(())
}

fn start_log(directives: &str) -> anyhow::Result<tracing_appender::non_blocking::WorkerGuard> {
    let file = log::LogFile::open(tp_ipc::make_state_dir()?.join("session.log"))?;
    let (writer, guard) = tracing_appender::non_blocking(file);
    let filter = tracing_subscriber::EnvFilter::try_new(directives)?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(writer)
        .init();

    Ok(guard)
}
