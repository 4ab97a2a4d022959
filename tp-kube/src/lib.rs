//! Where the API server is and as whom to talk to it, as the kubeconfig says, for the programs of
//! the workstation.
//!
//! ```no_run
//! use tp_kube::{Choice, Place, Shell};
//!
//! # async fn example() -> Result<(), tp_proto::fault::Fault> {
//! let shell = Shell::current();
//! let choice = Choice {
//!     kubeconfigs: shell.kubeconfigs()?,
//!     context: Some("staging".into()),
//!     shell,
//!     ..Choice::default()
//! };
//! let chosen = choice.load(Place::Foreground)?;
//! println!("{} at {}", chosen.context, chosen.server());
//! let client = chosen.client(None).await?;
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
pub use kubeconfig::{Choice, Chosen};
pub use plugin::Place;
pub use shell::Shell;
