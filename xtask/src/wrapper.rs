//! Wraps rustc for cargo, to link only the image's programs statically, not their tests.
//!
//! `cargo rustc -- -C target-feature=+crt-static` takes one package at a time, and cargo chooses
//! the features of all dependencies by the selected packages: each package would compile the whole
//! tree again.

use std::{
    env,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

/// Set by `products`; cargo passes it on. Crate names separated by commas.
pub(crate) const STATIC_CRATES: &str = "TP_XTASK_STATIC_CRATES";

/// The compiler's command line, if cargo called this program as its wrapper.
pub(crate) fn requested() -> Option<Command> {
    let crates = env::var(STATIC_CRATES).ok()?;
    let words: Vec<_> = env::args_os().skip(1).collect();
    let (compiler, arguments) = words.split_first()?;
    let value = |name: &str| {
        let position = arguments.iter().position(|word| word == name)?;
        arguments.get(position + 1)?.to_str()
    };

    let mut command = Command::new(compiler);
    command.args(arguments);
    let is_wanted =
        value("--crate-name").is_some_and(|name| crates.split(',').any(|one| one == name));
    if is_wanted
        && value("--crate-type") == Some("bin")
        && !arguments.iter().any(|word| word == "--test")
    {
        command.args(["-C", "target-feature=+crt-static"]);
    }
    Some(command)
}

pub(crate) fn run(mut compiler: Command) -> ExitCode {
    let error = compiler.exec();
    eprintln!("error: the compiler does not start: {error}");
    ExitCode::FAILURE
}
