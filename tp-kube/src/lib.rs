//! Finds the API server and the login for it in the kubeconfig, for the programs of the
//! workstation.
//!
//! ```no_run
//! use tp_kube::{KubeconfigOptions, PluginMode, Shell};
//!
//! # async fn example() -> Result<(), tp_proto::fault::Fault> {
//! let shell = Shell::current();
//! let options = KubeconfigOptions {
//!     kubeconfigs: shell.kubeconfigs()?,
//!     context: Some("staging".into()),
//!     shell,
//!     ..KubeconfigOptions::default()
//! };
//! let loaded = options.load(PluginMode::Foreground)?;
//! println!("{} at {}", loaded.context, loaded.server());
//! let client = loaded.client(None).await?;
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod client;
mod config;
mod credential;
mod identity;
mod kubeconfig;
mod login;
mod plugin;
mod proxy;
mod server;
mod shell;
mod trust;

pub use credential::Credential;
pub use kubeconfig::{KubeconfigOptions, LoadedKubeconfig};
pub use plugin::PluginMode;
pub use shell::Shell;
