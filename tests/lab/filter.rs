//! The tested binary `sip-xdp` with directories of its own, inside a namespace.
//!
//! More than 400 lines: one method per way in which a test controls the binary.

use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sip_xdp::dataplane::pins::Pins;
use sip_xdp::lists::{EARLIER, Lists, Refresh};
use sip_xdp::net::network::Network;

use crate::namespace::{Namespace, unique_name};
use crate::process::{Line, Process, output};
use crate::seccomp;
use crate::topology::{LAN, WAN};

/// Timeout for loading and attaching: the verifier takes half a second of processor time for each
/// interface, which with other work on the machine took more than 30 s.
const READY: Duration = Duration::from_secs(120);

/// Options of an instance.
#[derive(Debug, Clone)]
pub struct FilterOptions {
    /// Filtered interfaces.
    pub interfaces: Vec<String>,
    /// Further options of `run`.
    pub arguments: Vec<String>,
    /// Its configuration file.
    pub configuration: String,
    /// Its /etc/resolv.conf, if not the machine's.
    pub resolv_conf: Option<PathBuf>,
    /// Further environment variables of the daemon and its commands.
    pub environment: Vec<(String, String)>,
    /// System calls that a seccomp profile refuses, with the error.
    pub refused_calls: Vec<(libc::c_long, i32)>,
}

impl Default for FilterOptions {
    fn default() -> Self {
        Self {
            interfaces: vec![WAN.to_owned(), LAN.to_owned()],
            arguments: Vec::new(),
            configuration: String::new(),
            resolv_conf: None,
            environment: Vec::new(),
            refused_calls: Vec::new(),
        }
    }
}

/// One instance. Dropping it ends the daemon and unloads the filter.
#[derive(Debug)]
pub struct Filter<'a> {
    namespace: &'a Namespace,
    binary: PathBuf,
    directory: PathBuf,
    pins: PathBuf,
    options: FilterOptions,
    daemon: Option<Process>,
    earlier: Vec<Line>,
}

impl<'a> Filter<'a> {
    /// Starts the daemon with default options and waits until it enforces.
    pub fn start(namespace: &'a Namespace, directory: &Path) -> Result<Self> {
        Self::start_with(namespace, directory, FilterOptions::default())
    }

    /// With options.
    pub fn start_with(
        namespace: &'a Namespace,
        directory: &Path,
        options: FilterOptions,
    ) -> Result<Self> {
        let mut filter = Self::prepare(namespace, directory, options)?;
        filter.launch()?;
        Ok(filter)
    }

    /// Everything but the daemon, for commands that work, or fail well, without it.
    pub fn prepare(
        namespace: &'a Namespace,
        directory: &Path,
        options: FilterOptions,
    ) -> Result<Self> {
        let name = unique_name();
        let directory = directory.join(&name);
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let filter = Self {
            namespace,
            binary: binary()?,
            directory,
            pins: Path::new("/sys/fs/bpf").join(name),
            options,
            daemon: None,
            earlier: Vec::new(),
        };
        filter.configure(&filter.options.configuration)?;
        Ok(filter)
    }

    /// Writes the configuration file; a running daemon reads it on `reload`.
    pub fn configure(&self, configuration: &str) -> Result<()> {
        fs::write(self.configuration_file(), configuration)
            .context("cannot write the configuration")
    }

    /// Starts the daemon and waits for its `ready` line.
    pub fn launch(&mut self) -> Result<()> {
        let mut daemon = self.spawn()?;
        daemon.wait_line(READY, |line| !line.error && line.text.starts_with("ready"))?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Starts the daemon and kills it after a while, ready or not.
    pub fn launch_and_kill(&self, after: Duration) -> Result<()> {
        let mut daemon = self.spawn()?;
        sleep(after);
        daemon.stop(Signal::SIGKILL).map(drop)
    }

    fn spawn(&self) -> Result<Process> {
        let mut command = self.command(&["run"]);
        for interface in &self.options.interfaces {
            command.args(["--iface", interface]);
        }
        Process::spawn("sip-xdp", command.args(&self.options.arguments))
    }

    /// Starts a daemon that must refuse: its exit status and standard error.
    pub fn launch_in_vain(&mut self) -> Result<(ExitStatus, Vec<String>)> {
        let mut daemon = self.spawn()?;
        let status = daemon.wait(READY)?;
        let errors =
            daemon.lines().into_iter().filter(|line| line.error).map(|line| line.text).collect();
        Ok((status, errors))
    }

    /// Runs a command of the program.
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        output(&mut self.command(arguments))
    }

    /// Runs a command inside of another program, which gets the whole command line as its last
    /// arguments.
    pub fn cli_inside(&self, wrapper: &[&str], arguments: &[&str]) -> Result<Output> {
        let (program, options) = wrapper.split_first().context("no program to run it inside of")?;
        let mut command = self.namespace.command(program);
        command.args(options).arg(&self.binary);
        self.add_arguments(&mut command, arguments);
        output(&mut command)
    }

    /// Starts a command that does not end by itself.
    pub fn start_command(&self, arguments: &[&str]) -> Result<Process> {
        Process::spawn(arguments.join(" "), &mut self.command(arguments))
    }

    /// Runs a command that must succeed.
    pub fn succeed(&self, arguments: &[&str]) -> Result<String> {
        crate::process::succeed(&mut self.command(arguments))
    }

    /// Runs a command that must succeed, with `--json`, and parses its output.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = self.command(arguments);
        let text = crate::process::succeed(command.arg("--json"))?;
        serde_json::from_str(&text)
            .with_context(|| format!("`{}` printed no JSON: {text}", arguments.join(" ")))
    }

    /// Sends a request over the control socket, without the start of a command.
    pub fn call(&self, request: &Value) -> Result<Value> {
        let socket = self.directory.join("run/control.sock");
        let mut stream = UnixStream::connect(&socket).context("cannot reach the daemon")?;
        stream.set_read_timeout(Some(READY))?;
        stream.write_all(format!("{request}\n").as_bytes()).context("cannot send a request")?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).context("the daemon does not answer")?;
        let mut answer: Value =
            serde_json::from_str(&answer).context("the daemon's answer is no JSON")?;
        match answer.get_mut("ok") {
            Some(value) => Ok(value.take()),
            None => bail!("the daemon refused {request}: {answer}"),
        }
    }

    /// A counter of one interface, such as `drop.blocked`; 0 if the reason never occurred.
    pub fn packets(&self, interface: &str, counter: &str) -> Result<u64> {
        let stats = self.json(&["stats"])?;
        let interfaces = stats["interfaces"].as_array().context("`stats` has no interfaces")?;
        let found = interfaces
            .iter()
            .find(|entry| entry["interface"] == interface)
            .with_context(|| format!("`stats` has no interface {interface}: {stats}"))?;
        let path = format!("/packets/{}", counter.replace('.', "/"));
        Ok(found.pointer(&path).and_then(Value::as_u64).unwrap_or(0))
    }

    /// Adds networks to the `block` or `trust` list, permanently or for `ttl`, through the control
    /// socket.
    pub fn put(&self, list: &str, networks: &[String], ttl: Option<Duration>) -> Result<()> {
        for network in networks {
            self.call(&json!({
                "command": "add",
                "list": list,
                "network": network,
                "ttl": ttl.map(|ttl| ttl.as_secs()),
                "reason": "laboratory",
                "force": true,
                "operator": null,
            }))?;
        }
        Ok(())
    }

    /// Makes feeds list exactly these networks. The daemon is stopped for that and started again:
    /// it adopts them, and keeps them because of a configured feed that never responds.
    pub fn feed(&mut self, networks: Vec<Network>) -> Result<Refresh> {
        self.stop()?;
        if !self.options.configuration.contains("[[feeds]]") {
            self.options
                .configuration
                .push_str("\n[[feeds]]\nname = \"laboratory\"\nurl = \"file:///nonexistent\"\n");
            self.configure(&self.options.configuration)?;
        }
        let refresh = {
            let pins = Pins::new(&self.pins);
            let _lock = pins.lock()?;
            let mut lists =
                Lists::open(|name| pins.open(name)).context("the pinned lists cannot be opened")?;
            lists.replace_feed(EARLIER, networks)?
        };
        self.launch()?;
        Ok(refresh)
    }

    /// All packets dropped on one interface.
    pub fn dropped(&self, interface: &str) -> Result<u64> {
        ["blocked", "closed", "limited", "storm"]
            .iter()
            .map(|reason| self.packets(interface, &format!("drop.{reason}")))
            .sum()
    }

    /// The block list entries for exactly this address, or `network` as `block list` writes it.
    pub fn entries(&self, network: &str) -> Result<Vec<Value>> {
        let list = self.json(&["block", "list", "--match", network])?;
        let list = list.as_array().context("`block list --json` is no array")?;
        let host = network.split_once('/').map_or(network, |(host, _)| host);
        let is_host = [format!("{host}/32"), format!("{host}/128"), host.to_owned()];
        Ok(list
            .iter()
            .filter(|entry| {
                entry["network"].as_str().is_some_and(|listed| {
                    listed == network
                        || (!network.contains('/') && is_host.iter().any(|name| name == listed))
                })
            })
            .cloned()
            .collect())
    }

    /// Whether a source is banned by the detector.
    pub fn is_banned(&self, address: &str) -> Result<bool> {
        Ok(self.entries(address)?.iter().any(|entry| entry["owner"] == "auto"))
    }

    /// Time of the first log line about a ban of this source.
    pub fn ban_logged(&self, address: &str) -> Option<SystemTime> {
        let starts = format!("ban {address} ");
        self.log().into_iter().find(|line| line.text.contains(&starts)).map(|line| line.at)
    }

    /// The log of this and earlier daemons.
    pub fn log(&self) -> Vec<Line> {
        let current = self.daemon.as_ref().map(Process::lines).unwrap_or_default();
        self.earlier.iter().cloned().chain(current).collect()
    }

    /// The daemon's process id.
    pub fn pid(&self) -> Option<nix::unistd::Pid> {
        self.daemon.as_ref().map(Process::pid)
    }

    /// Kills the daemon; the filter stays.
    pub fn kill9(&mut self) -> Result<()> {
        self.end(Signal::SIGKILL).map(drop)
    }

    /// Ends the daemon orderly; the filter stays.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.end(Signal::SIGTERM)?;
        if !status.success() {
            bail!("the daemon ended with {status} when it was asked to stop");
        }
        Ok(())
    }

    /// Ends the daemon and starts another one, which adopts the filter.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.launch()
    }

    /// Its state directory.
    pub fn state_directory(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Its pin directory.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// Removes the filter.
    pub fn unload(&mut self) -> Result<()> {
        if self.daemon.is_some() {
            self.stop()?;
        }
        self.succeed(&["unload"]).map(drop)
    }

    fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        let mut daemon = self.daemon.take().context("the daemon is not running")?;
        let status = daemon.stop(signal)?;
        self.earlier.extend(daemon.lines());
        Ok(status)
    }

    /// The prefix of a command line for this instance, as text.
    pub fn command_line(&self) -> String {
        let command = self.command(&[]);
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    fn configuration_file(&self) -> PathBuf {
        self.directory.join("config.toml")
    }

    /// A command with the directories of this instance.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match &self.options.resolv_conf {
            None => self.namespace.command(&self.binary),
            Some(file) => {
                // A private mount namespace, in which the BPF file system is still the shared one.
                let mut command = self.namespace.command("unshare");
                let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
                command.args(["--mount", "--", "sh", "-c", script]).arg(file).arg(&self.binary);
                command
            }
        };
        self.add_arguments(&mut command, arguments);
        seccomp::refuse(&mut command, &self.options.refused_calls);
        command
    }

    /// A command of another program with the same options.
    pub fn command_of(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = self.namespace.command(program);
        self.add_arguments(&mut command, arguments);
        command
    }

    fn add_arguments(&self, command: &mut Command, arguments: &[&str]) {
        command.envs(self.options.environment.iter().map(|(name, value)| (name, value)));
        command.arg("--config").arg(self.configuration_file());
        command.arg("--run-dir").arg(self.directory.join("run"));
        command.arg("--state-dir").arg(self.state_directory());
        command.arg("--pin-dir").arg(&self.pins).args(arguments);
    }
}

impl Drop for Filter<'_> {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.stop(Signal::SIGTERM);
        }
        // After a failed test there may be nothing to unload; pins must go in any case.
        if self.pins.exists() && self.succeed(&["unload"]).is_err() {
            let _ = fs::remove_dir_all(&self.pins);
        }
    }
}

/// The binary: given by xtask, or next to the tests.
pub fn binary() -> Result<PathBuf> {
    if let Some(binary) = env::var_os("SIP_XDP_BIN") {
        return Ok(binary.into());
    }
    let own = env::current_exe().context("cannot find our own executable")?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("sip-xdp"))
        .find(|candidate| candidate.is_file())
        .context("no sip-xdp binary: `cargo xtask build` makes it, SIP_XDP_BIN names another one")
}
