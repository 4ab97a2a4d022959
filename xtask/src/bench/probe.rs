//! What runs on the measured side: one small load, figures as JSON on standard output.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

const LIMIT: Duration = Duration::from_secs(20);

#[derive(clap::Subcommand, Debug)]
pub(crate) enum Probe {
    /// Round trips of 64 bytes on one connection to an echo port.
    Requests { target: String, count: usize },
    /// getaddrinfo of a name.
    Resolve { name: String, count: usize },
    /// Connects and closes.
    Connects { target: String, count: usize },
}

pub(crate) fn run(probe: &Probe) -> anyhow::Result<()> {
    let samples = match probe {
        Probe::Requests { target, count } => requests(target, *count)?,
        Probe::Resolve { name, count } => repeat(*count, || resolve(name))?,
        Probe::Connects { target, count } => repeat(*count, || connect(target))?,
    };
    println!("{}", serde_json::to_string(&samples)?);

    Ok(())
}

/// Microseconds of each repetition. The first warms caches and is not counted.
fn repeat(
    count: usize,
    mut action: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<f64>> {
    let end = Instant::now() + LIMIT;
    let mut samples = Vec::with_capacity(count);
    action()?;
    while samples.len() < count && Instant::now() < end {
        let start = Instant::now();
        action()?;
        samples.push(start.elapsed().as_secs_f64() * 1e6);
    }

    Ok(samples)
}

fn requests(target: &str, count: usize) -> anyhow::Result<Vec<f64>> {
    let mut stream = open(target)?;
    let request = [b'x'; 64];
    let mut reply = [0; 64];
    repeat(count, || {
        stream.write_all(&request)?;
        stream
            .read_exact(&mut reply)
            .context("the echo server ended the connection")
    })
}

fn connect(target: &str) -> anyhow::Result<()> {
    drop(open(target)?);
    Ok(())
}

fn open(target: &str) -> anyhow::Result<TcpStream> {
    let address = target
        .to_socket_addrs()
        .with_context(|| format!("{target} does not resolve"))?
        .next()
        .with_context(|| format!("{target} has no address"))?;
    let stream = TcpStream::connect_timeout(&address, LIMIT)
        .with_context(|| format!("no connection to {target}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;

    Ok(stream)
}

fn resolve(name: &str) -> anyhow::Result<()> {
    let found = (name, 80)
        .to_socket_addrs()
        .with_context(|| format!("{name} does not resolve"))?;
    if found.count() == 0 {
        bail!("{name} has no address");
    }

    Ok(())
}
