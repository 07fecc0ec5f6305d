//! A real fail2ban beside the registrar, with its own or our action, in the namespace only.
//! Configuration, socket, database and process id file are its own.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::namespace::{Namespace, unique_name};
use crate::process::{Process, succeed};
use crate::registrar::FAILURE;

/// Failed logins before a ban: the package's default.
pub const MAX_RETRY: usize = 5;
/// Time window of failed logins: the package's default.
pub const FIND_TIME: &str = "10m";
/// Log watching without polling.
pub const BACKEND: &str = "pyinotify";
/// Its ban action.
pub const ACTION: &str = "iptables-multiport";

/// Directory of the package's actions.
const ACTIONS: &str = "/etc/fail2ban/action.d";
const JAIL: &str = "sip";
/// Python needs a while to start.
const READY: Duration = Duration::from_secs(20);

/// Our action file, as packaged.
const OUR_ACTION: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../sip-xdp/packaging/fail2ban/sip-xdp.conf");

/// A server in the foreground; ends when dropped.
#[derive(Debug)]
pub struct Fail2ban {
    process: Process,
    socket: PathBuf,
}

impl Fail2ban {
    /// Starts it in a namespace, on an existing log, and waits until it watches.
    pub fn start(namespace: &Namespace, directory: &Path, log: &Path) -> Result<Self> {
        let directory = directory.join(unique_name());
        configure(&directory, log).context("cannot configure fail2ban")?;
        Self::launch(namespace, &directory, &[JAIL])
    }

    /// Starts it with these jails, each over an existing log, which ban through the command line
    /// `sip_xdp`. Another one started later in the same directory remembers its bans.
    pub fn start_through(
        namespace: &Namespace,
        directory: &Path,
        jails: &[(&str, &Path)],
        sip_xdp: &str,
    ) -> Result<Self> {
        configure_through(directory, jails, sip_xdp).context("cannot configure fail2ban")?;
        Self::launch(namespace, directory, &jails.iter().map(|(name, _)| *name).collect::<Vec<_>>())
    }

    fn launch(namespace: &Namespace, directory: &Path, jails: &[&str]) -> Result<Self> {
        let socket = directory.join("fail2ban.sock");
        let mut command = namespace.command("fail2ban-server");
        command.current_dir(directory).args(["-f", "-x", "--logtarget", "stdout"]);
        command.arg("-c").arg(directory).arg("-s").arg(&socket);
        command.arg("-p").arg(directory.join("fail2ban.pid")).arg("start");
        let mut process = Process::spawn("fail2ban", &mut command)?;
        for jail in jails {
            let started = format!("Jail '{jail}' started");
            process.wait_line(READY, |line| line.text.contains(&started))?;
        }
        Ok(Self { process, socket })
    }

    /// Sends it a command, and returns the response.
    pub fn client(&self, arguments: &[&str]) -> Result<String> {
        succeed(Command::new("fail2ban-client").arg("-s").arg(&self.socket).args(arguments))
    }

    /// Whether a jail has an address banned.
    pub fn holds(&self, jail: &str, address: impl Into<IpAddr>) -> Result<bool> {
        let address = address.into().to_string();
        Ok(self.client(&["get", jail, "banip"])?.split_whitespace().any(|banned| banned == address))
    }

    /// Number of its log lines that contain this.
    pub fn count_logged(&self, text: &str) -> usize {
        self.process.count_lines(|line| line.text.contains(text))
    }

    /// Ends it orderly, which unbans all.
    pub fn stop(mut self) -> Result<()> {
        self.process.stop(Signal::SIGTERM).map(drop)
    }

    /// Time of its decision to ban an address, before its action ran.
    pub fn banned(&self, address: impl Into<IpAddr>) -> Option<SystemTime> {
        let decision = format!("[{JAIL}] Ban {}", address.into());
        self.process
            .lines()
            .into_iter()
            .find(|line| line.text.ends_with(&decision))
            .map(|line| line.at)
    }

    /// The end of its log, for messages.
    pub fn log(&self) -> String {
        self.process.tail()
    }
}

fn configure(directory: &Path, log: &Path) -> Result<()> {
    if !Path::new(ACTIONS).is_dir() {
        bail!("{ACTIONS} is missing: is the package fail2ban installed?");
    }
    fs::create_dir_all(directory.join("filter.d"))?;
    symlink(ACTIONS, directory.join("action.d"))?;
    // Bans need not survive this instance.
    fs::write(directory.join("fail2ban.conf"), server("None"))?;
    fs::write(directory.join("filter.d").join(format!("{JAIL}.conf")), filter())?;
    fs::write(directory.join("jail.conf"), jail(log))?;
    Ok(())
}

fn configure_through(directory: &Path, jails: &[(&str, &Path)], sip_xdp: &str) -> Result<()> {
    for part in ["filter.d", "action.d"] {
        fs::create_dir_all(directory.join(part))?;
    }
    fs::copy(OUR_ACTION, directory.join("action.d/sip-xdp.conf")).context("no action file")?;
    fs::write(
        directory.join("fail2ban.conf"),
        server(&directory.join("bans.sqlite3").display().to_string()),
    )?;
    fs::write(directory.join("filter.d").join(format!("{JAIL}.conf")), filter())?;
    let jail = |(name, log): &(&str, &Path)| {
        format!(
            "[{name}]\nenabled = true\nfilter = {JAIL}\nlogpath = {}\nbackend = polling\nmaxretry \
             = {MAX_RETRY}\n\
             findtime = {FIND_TIME}\nbantime = 10m\nusedns = no\naction = \
             sip-xdp[sipxdp=\"{sip_xdp}\"]\n\n",
            log.display()
        )
    };
    fs::write(directory.join("jail.conf"), jails.iter().map(jail).collect::<String>())?;
    Ok(())
}

fn server(database: &str) -> String {
    format!(
        "[DEFAULT]\nloglevel = INFO\nlogtarget = stdout\nsyslogsocket = auto\ndbfile = \
         {database}\ndbpurgeage = 1d\n\
         dbmaxmatches = 10\nallowipv6 = auto\n[Definition]\n[Thread]\n"
    )
}

fn filter() -> String {
    format!("[Definition]\nfailregex = {FAILURE}<HOST>$\nignoreregex =\n")
}

/// The chain is created at the start, not with the first ban: the faster of the two ways.
fn jail(log: &Path) -> String {
    format!(
        "[{JAIL}]\nenabled = true\nfilter = {JAIL}\nlogpath = {}\nbackend = {BACKEND}\nmaxretry = \
         {MAX_RETRY}\n\
         findtime = {FIND_TIME}\nbantime = 10m\nusedns = no\n\
         action = {ACTION}[name={JAIL}, port=\"5060,5061\", protocol=udp, \
         actionstart_on_demand=false]\n",
        log.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_a_jail_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        if Path::new(ACTIONS).is_dir() {
            configure(directory.path(), Path::new("/x/log")).unwrap();
            let jail = fs::read_to_string(directory.path().join("jail.conf")).unwrap();
            assert!(
                jail.contains("\nlogpath = /x/log\n") && jail.contains("\nmaxretry = 5\n"),
                "{jail}"
            );
            assert!(directory.path().join("action.d/iptables-multiport.conf").exists());
        }
        assert_eq!(filter(), "[Definition]\nfailregex = Failed auth from <HOST>$\nignoreregex =\n");
    }
}
