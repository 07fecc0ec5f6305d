//! Real attack tools: sipvicious, which scans, enumerates and guesses passwords, and sipsak, which also has honest uses.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::Result;

use crate::namespace::Namespace;
use crate::process::{Process, output};
use crate::topology::{ATTACKER, PBX_WAN};

/// Somebody with tools.
#[derive(Debug)]
pub struct Attacker<'a> {
    namespace: &'a Namespace,
    directory: PathBuf,
    address: Ipv4Addr,
}

impl<'a> Attacker<'a> {
    /// The attacker at its usual address.
    pub fn new(namespace: &'a Namespace, directory: &Path) -> Self {
        Self { namespace, directory: directory.to_path_buf(), address: ATTACKER }
    }

    /// The same at another address of the namespace.
    #[must_use]
    pub fn address(mut self, address: Ipv4Addr) -> Self {
        self.address = address;
        self
    }

    /// Guesses numeric passwords of one user, about 180 a second, for longer than any test lasts.
    pub fn crack(&self, user: &str) -> Result<Process> {
        let mut command = self.sipvicious("svcrack");
        command.args(["-u", user, "-r", "100000-999999", "--maximumtime", "300"]).arg(PBX_WAN.to_string());
        Process::spawn("svcrack", &mut command)
    }

    /// Tries extensions with one method: REGISTER, OPTIONS or INVITE.
    pub fn enumerate(&self, method: &str) -> Result<Process> {
        let mut command = self.sipvicious("svwar");
        command.args(["--force", "-m", method, "-e", "1000-99999", "--maximumtime", "300"]);
        Process::spawn("svwar", command.arg(PBX_WAN.to_string()))
    }

    /// Looks for SIP servers in a network.
    pub fn map(&self, network: &str) -> Result<Process> {
        let mut command = self.sipvicious("svmap");
        Process::spawn("svmap", command.args(["-p", "5060", network]))
    }

    /// One OPTIONS from sipsak, as monitoring systems send them; succeeds when it was answered with 200.
    pub fn ping(&self) -> Result<Output> {
        output(self.home(&mut self.namespace.command("sipsak")).args(["-v", "-s", &format!("sip:ping@{PBX_WAN}")]))
    }

    /// Its tools ask for the machine's name and keep files in the home directory; both are its own here.
    fn sipvicious(&self, tool: &str) -> Command {
        let mut command = self.namespace.command(tool);
        self.home(&mut command);
        command.args(["-x", &self.address.to_string(), "-b", &self.address.to_string()]);
        command
    }

    fn home<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env("HOME", &self.directory).current_dir(&self.directory)
    }
}
