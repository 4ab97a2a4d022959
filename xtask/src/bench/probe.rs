//! Runs one small load on the measured machine and prints figures as JSON.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

/// For one answer, and for all repetitions of a small measurement.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of the first transfer; later ones are scaled to the requested time.
const FIRST_TRANSFER: u64 = 8 << 20;
const LARGEST_TRANSFER: u64 = 64 << 30;
const PIECE: usize = 128 << 10;

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Direction {
    /// To the far end.
    Up,
    /// From the far end.
    Down,
}

#[derive(clap::Subcommand, Debug)]
pub(crate) enum Probe {
    /// Round trips of 64 bytes on one connection to an echo port.
    Requests { target: String, count: usize },
    /// getaddrinfo of a name.
    Resolve { name: String, count: usize },
    /// A new connection to an echo port and the first 64 bytes back.
    Answers { target: String, count: usize },
    /// Connects and closes.
    Connects { target: String, count: usize },
    /// Gbit/s of one transfer with the command port of the echo server.
    Bulk {
        direction: Direction,
        target: String,
        seconds: u32,
    },
}

pub(crate) fn run(probe: &Probe) -> anyhow::Result<()> {
    let samples = match probe {
        Probe::Requests { target, count } => requests(target, *count)?,
        Probe::Resolve { name, count } => repeat(*count, || resolve(name))?,
        Probe::Answers { target, count } => repeat(*count, || answer(target))?,
        Probe::Connects { target, count } => repeat(*count, || connect(target))?,
        Probe::Bulk {
            direction,
            target,
            seconds,
        } => vec![bulk(*direction, target, f64::from(*seconds))?],
    };
    println!("{}", serde_json::to_string(&samples)?);

    Ok(())
}

/// Microseconds of each repetition. The first warms caches and is not counted.
fn repeat(
    count: usize,
    mut action: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<f64>> {
    let end = Instant::now() + TIMEOUT;
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
    repeat(count, || request(&mut stream))
}

fn request(stream: &mut TcpStream) -> anyhow::Result<()> {
    let mut reply = [0; 64];
    stream.write_all(&[b'x'; 64])?;
    stream
        .read_exact(&mut reply)
        .context("the echo server ended the connection")
}

fn answer(target: &str) -> anyhow::Result<()> {
    request(&mut open(target)?)
}

/// Transfers growing amounts until one takes about `seconds`; returns its rate in Gbit/s of
/// payload. The far end counts: an upload ends when it reports that it has read all, a download
/// when all has arrived.
fn bulk(direction: Direction, target: &str, seconds: f64) -> anyhow::Result<f64> {
    let mut size = FIRST_TRANSFER;
    loop {
        let took = match direction {
            Direction::Up => upload(target, size)?,
            Direction::Down => download(target, size)?,
        };
        let took = took.as_secs_f64().max(1e-6);
        if took >= seconds * 0.7 || size >= LARGEST_TRANSFER {
            return Ok(size as f64 * 8.0 / took / 1e9);
        }
        // Grows stepwise: the first transfers end before they reach full speed.
        let factor = (seconds / took).clamp(1.2, 16.0);
        size = ((size as f64 * factor) as u64).min(LARGEST_TRANSFER);
    }
}

fn upload(target: &str, size: u64) -> anyhow::Result<Duration> {
    let mut stream = open(target)?;
    let piece = vec![0; PIECE];
    let start = Instant::now();
    stream.write_all(format!("take {size}\n").as_bytes())?;
    let mut left = size;
    while left > 0 {
        let length = piece.len().min(usize::try_from(left)?);
        stream.write_all(&piece[..length])?;
        left -= length as u64;
    }
    let mut answer = String::new();
    BufReader::new(stream)
        .read_line(&mut answer)
        .context("the far end gave no count")?;
    let took = start.elapsed();
    let report: serde_json::Value = serde_json::from_str(&answer)
        .with_context(|| format!("the far end answered {answer:?}"))?;
    if report["received"].as_u64() != Some(size) {
        bail!("the far end has not received {size} bytes: {answer}");
    }

    Ok(took)
}

fn download(target: &str, size: u64) -> anyhow::Result<Duration> {
    let mut stream = open(target)?;
    let mut piece = vec![0; PIECE];
    let start = Instant::now();
    stream.write_all(format!("give {size}\n").as_bytes())?;
    let mut received = 0;
    while received < size {
        match stream.read(&mut piece)? {
            0 => bail!("the far end ended after {received} of {size} bytes"),
            length => received += length as u64,
        }
    }

    Ok(start.elapsed())
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
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)
        .with_context(|| format!("no connection to {target}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;

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
