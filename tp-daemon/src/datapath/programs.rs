//! The programs of the machine: loaded while a session is still on its way, since the kernel takes
//! longer to check them than a session to log in.

use std::{
    mem,
    os::unix::fs::MetadataExt as _,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use tp_ebpf_loader::{DataPath, KernelOffsets};
use tp_process::sync::lock;
use tp_root_api::PROCESS_NAME;

use crate::{request_error::RequestError, scope::Hierarchy};

/// Loads the programs, and attaches them.
pub(crate) struct Programs {
    offsets: KernelOffsets,
    hierarchy: Hierarchy,
    early: Mutex<Early>,
    /// Held while programs are loaded: however many peers come and go, the kernel checks one set at a
    /// time.
    loading: Mutex<()>,
}

/// What is loaded before it is needed.
#[derive(Default)]
struct Early {
    /// Sessions that may come.
    expected: usize,
    loading: Option<JoinHandle<Result<DataPath, RequestError>>>,
}

/// Loaded programs are kept for a session until this is dropped.
pub(crate) struct Expectation {
    programs: Arc<Programs>,
}

impl Programs {
    pub(crate) fn new(offsets: KernelOffsets, hierarchy: Hierarchy) -> Self {
        Self {
            offsets,
            hierarchy,
            early: Mutex::default(),
            loading: Mutex::default(),
        }
    }

    pub(crate) fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// Begins to load the programs for a session that is about to come.
    pub(crate) fn expect(self: &Arc<Self>) -> Expectation {
        let mut early = lock(&self.early);
        early.expected += 1;
        if early.loading.is_none() {
            let this = Arc::clone(self);
            // Without a thread the session loads them.
            early.loading = thread::Builder::new()
                .name("loading".to_owned())
                .spawn(move || this.load())
                .ok();
        }

        Expectation {
            programs: Arc::clone(self),
        }
    }

    /// Returns the programs attached, those that were loaded early if there are any.
    pub(crate) fn attach(&self) -> Result<DataPath, RequestError> {
        let early = lock(&self.early).loading.take();
        // What failed then may succeed now.
        let mut data_path = match early.and_then(ready) {
            Some(data_path) => data_path,
            None => self.load()?,
        };
        data_path.attach_cgroup(self.hierarchy.open()?)?;

        Ok(data_path)
    }

    fn load(&self) -> Result<DataPath, RequestError> {
        let _alone = lock(&self.loading);
        let hierarchy = self.hierarchy.open()?.metadata()?.ino();

        Ok(DataPath::load(PROCESS_NAME, self.offsets, hierarchy)?)
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let mut early = lock(&self.programs.early);
        early.expected -= 1;
        if early.expected > 0 {
            return;
        }
        let loading = mem::take(&mut early.loading);
        drop(early);
        // When the last connection has ended, nothing is left: the thread is waited for.
        drop(loading.and_then(ready));
    }
}

fn ready(loading: JoinHandle<Result<DataPath, RequestError>>) -> Option<DataPath> {
    let loaded = loading.join().expect("loading does not panic");

    loaded
        .inspect_err(|error| tracing::debug!(%error, "Programs were not loaded early"))
        .ok()
}
