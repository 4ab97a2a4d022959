//! A virtual machine that runs one command in the file system of this computer, which it cannot
//! change, under another kernel.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::kernel::Kernel;
use crate::{paths, run};

/// What the virtual machine needs to reach the file system of this computer.
const MODULES: &[&str] = &["virtio_pci", "9pnet_virtio", "9p"];
/// The beginning of the line that ends a run; see `testbed/vm/tests`.
const STATUS: &str = "tp-vm: status ";
/// After the last line of a run.
const END_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) struct Guest<'a> {
    pub(super) kernel: &'a Kernel,
    /// Of the whole run; an emulated machine may hang in many ways.
    pub(super) timeout: Duration,
}

impl Guest<'_> {
    /// Runs a command, whose output the user sees. It has the environment and the folder that are set,
    /// and no others.
    pub(super) fn run(&self, command: &Command) -> Result<()> {
        let folder = tempfile::tempdir().context("making a folder for a RAM disk")?;
        let disk = folder.path().join("initrd");
        self.write_disk(&disk, command)?;
        let log = paths::logs().join(format!("vm-{}.log", self.kernel.release));
        let console = log.with_extension("console.log");
        run::create(&console)?;

        let mut machine = self.machine(&disk, &console);
        let mut child = machine
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(run::create(&log)?)
            .spawn()
            .with_context(|| format!("{} does not start", run::shown(&machine)))?;
        let lines = listen(child.stdout.take().context("the output is piped")?);
        let outcome = self
            .follow(&lines)
            .and_then(|()| expect_end(&mut child))
            .with_context(|| {
                format!(
                    "on Linux {}; see {} and {}",
                    self.kernel.release,
                    console.display(),
                    log.display()
                )
            });
        // It has ended, or will not by itself.
        let _ = child.kill();
        child.wait()?;
        // Above all the name of a test that has not ended.
        for line in lines {
            println!("{line}");
        }
        if outcome.is_err() {
            println!("{}", run::tail(&console, 25));
        }

        outcome
    }

    fn machine(&self, disk: &Path, console: &Path) -> Command {
        // Processor bugs cost much to work around, and the emulated one has none. Its clock need not
        // be compared with a slower one.
        let kernel = "console=ttyS0 quiet panic=-1 oops=panic mitigations=off tsc=reliable";
        let mut machine = Command::new("setpriv");
        machine
            .args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-machine", "q35"])
            .args(["-accel", "tcg,thread=multi"])
            .args(["-cpu", "max", "-smp", "2", "-m", "2048"])
            .arg("-kernel")
            .arg(self.kernel.image())
            .arg("-initrd")
            .arg(disk)
            .args(["-append", kernel])
            .args([
                "-fsdev",
                "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
            ])
            .args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"]);

        machine
    }

    /// The initial RAM disk: busybox, modules, and the scripts.
    fn write_disk(&self, disk: &Path, command: &Command) -> Result<()> {
        let staged = tempfile::tempdir().context("making a folder for a RAM disk")?;
        let at = |name: &str| staged.path().join(name);
        for folder in ["bin", "dev", "modules", "root", "vm"] {
            fs::create_dir(at(folder))?;
        }
        let sources = paths::testbed_sources().join("vm");
        let busybox = run::which("busybox").context("there is no busybox")?;
        for (from, to) in [
            (busybox, "bin/busybox"),
            (sources.join("init"), "init"),
            (sources.join("tests"), "vm/tests"),
        ] {
            fs::copy(&from, at(to)).with_context(|| format!("copying {}", from.display()))?;
        }
        for (place, file) in self.kernel.files_of(MODULES)?.iter().enumerate() {
            // Sorted by name they are in order.
            let target = at("modules").join(format!("{place:02}"));
            fs::write(target, unpacked(file)?)?;
        }
        fs::write(at("vm/job"), self.job(command)?)?;

        run::output(
            Command::new("sh")
                .args(["-c", "find . | busybox cpio -o -H newc >\"$0\""])
                .arg(disk)
                .current_dir(staged.path()),
        )
        .map(drop)
    }

    /// What `testbed/vm/tests` reads.
    fn job(&self, command: &Command) -> Result<String> {
        let folder = command.get_current_dir().context("a run has a folder")?;
        let variables = command
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?)))
            .map(|(name, value)| format!("{}={}", name.display(), value.display()));
        let environment: Vec<String> = ["env".to_owned()].into_iter().chain(variables).collect();
        let root = self.kernel.root.display().to_string();

        Ok(format!(
            "modules={}\nrun_tests() {{\n    cd {} && {} {}\n}}\n",
            run::in_shell(&[root]),
            run::in_shell(&[folder.display().to_string()]),
            run::in_shell(&environment),
            run::shown(command)
        ))
    }

    /// Shows the output until the line that ends it.
    fn follow(&self, lines: &mpsc::Receiver<String>) -> Result<()> {
        let end = Instant::now() + self.timeout;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = match lines.recv_timeout(left) {
                Ok(line) => line,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    bail!("the tests have not ended within {:?}", self.timeout)
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    bail!("the virtual machine ended before the tests did")
                }
            };
            match line.strip_prefix(STATUS) {
                Some("0") => return Ok(()),
                Some(status) => bail!("the tests ended with status {status}"),
                None => println!("{line}"),
            }
        }
    }
}

/// The lines of a program's output, to the end of it.
fn listen(output: ChildStdout) -> mpsc::Receiver<String> {
    let (line_tx, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if line_tx.send(line).is_err() {
                return;
            }
        }
    });

    lines
}

/// Waits for a virtual machine that has been told to stop.
fn expect_end(child: &mut Child) -> Result<()> {
    let status = run::Wait {
        what: "the virtual machine to stop",
        within: END_TIMEOUT,
        log: None,
    }
    .until(|| child.try_wait()?.context("it runs"))?;
    if !status.success() {
        bail!("QEMU ended with {status}");
    }

    Ok(())
}

/// The bytes of a module.
fn unpacked(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_some_and(|it| it == "ko") {
        return fs::read(file).with_context(|| format!("reading {}", file.display()));
    }
    let output = Command::new("busybox")
        .arg("xzcat")
        .arg(file)
        .output()
        .context("busybox does not start")?;
    if !output.status.success() {
        bail!("{} is not compressed with xz", file.display());
    }

    Ok(output.stdout)
}
