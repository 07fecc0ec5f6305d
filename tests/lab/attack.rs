//! Real attack tools: sipvicious, which scans, enumerates and guesses passwords, and sipsak, which
//! also has legitimate uses.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result};

use crate::namespace::Namespace;
use crate::process::{Process, output};
use crate::topology::{ATTACKER, PBX_WAN};

/// An attacker with tools.
#[derive(Debug)]
pub struct Attacker<'a> {
    namespace: &'a Namespace,
    directory: PathBuf,
    address: Ipv4Addr,
    disguise: Disguise,
}

/// How an attacker hides its tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disguise {
    /// Not at all.
    None,
    /// Compact headers without User-Agent: the tools' option `-c`.
    Compact,
    /// The User-Agent of a real phone, for which the tools have no option.
    Agent,
    /// A source port other than 5060.
    Port,
}

impl Disguise {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::None, Self::Compact, Self::Agent, Self::Port];
}

impl<'a> Attacker<'a> {
    /// An attacker at its usual address.
    pub fn new(namespace: &'a Namespace, directory: &Path) -> Self {
        Self {
            namespace,
            directory: directory.to_path_buf(),
            address: ATTACKER,
            disguise: Disguise::None,
        }
    }

    /// With a disguise.
    #[must_use]
    pub fn disguise(mut self, disguise: Disguise) -> Self {
        self.disguise = disguise;
        self
    }

    /// At another address of the namespace.
    #[must_use]
    pub fn address(mut self, address: Ipv4Addr) -> Self {
        self.address = address;
        self
    }

    /// Guesses numeric passwords of one user, about 180 a second, for longer than any test lasts.
    pub fn crack(&self, user: &str) -> Result<Process> {
        // The tool's default.
        self.crack_with_pauses(user, "0.005")
    }

    /// As [`Attacker::crack`], with a pause in seconds before each password.
    pub fn crack_with_pauses(&self, user: &str, pause: &str) -> Result<Process> {
        let mut command = self.sipvicious("svcrack")?;
        command
            .args(["-t", pause, "-u", user, "-r", "100000-999999", "--maximumtime", "300"])
            .arg(PBX_WAN.to_string());
        Process::spawn("svcrack", &mut command)
    }

    /// Tries extensions with one method: REGISTER, OPTIONS or INVITE.
    pub fn enumerate(&self, method: &str) -> Result<Process> {
        let mut command = self.sipvicious("svwar")?;
        command.args(["--force", "-m", method, "-e", "1000-99999", "--maximumtime", "300"]);
        Process::spawn("svwar", command.arg(PBX_WAN.to_string()))
    }

    /// Looks for SIP servers in a network.
    pub fn map(&self, network: &str) -> Result<Process> {
        let mut command = self.sipvicious("svmap")?;
        Process::spawn("svmap", command.args(["-p", "5060", network]))
    }

    /// One OPTIONS from sipsak, as monitoring systems send them; succeeds on a 200.
    pub fn ping(&self) -> Result<Output> {
        output(self.home(&mut self.namespace.command("sipsak")).args([
            "-v",
            "-s",
            &format!("sip:ping@{PBX_WAN}"),
        ]))
    }

    /// The tools look up the host name and keep files in the home directory; both are private here.
    fn sipvicious(&self, tool: &str) -> Result<Command> {
        let is_itself = self.disguise != Disguise::Agent && self.address == ATTACKER;
        let mut command =
            if is_itself { self.namespace.command(tool) } else { self.altered(tool)? };
        match self.disguise {
            Disguise::Compact => _ = command.arg("-c"),
            Disguise::Port => _ = command.args(["-P", &OTHER_PORT.to_string()]),
            Disguise::None | Disguise::Agent => {}
        }
        self.home(&mut command);
        command.args(["-x", &self.address.to_string(), "-b", &self.address.to_string()]);
        Ok(command)
    }

    /// A tool with a setting for which it has no option, or one without effect.
    fn altered(&self, tool: &str) -> Result<Command> {
        let script = self.directory.join("altered.py");
        fs::write(&script, ALTERED)
            .with_context(|| format!("cannot write {}", script.display()))?;
        let mut command = self.namespace.command("python3");
        command.arg(script).args([tool, &self.address.to_string()]);
        command.arg(if self.disguise == Disguise::Agent { OTHER_AGENT } else { "" });
        Ok(command)
    }

    fn home<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env("HOME", &self.directory).current_dir(&self.directory)
    }
}

/// The source port of [`Disguise::Port`].
pub const OTHER_PORT: u16 = 5099;

/// The User-Agent of [`Disguise::Agent`].
const OTHER_AGENT: &str = "Grandstream GXP1625 1.0.4.152";

/// Runs a tool with another User-Agent, if given, and bound to an address: `-b` has no effect in
/// svcrack and svwar 0.3.3.
const ALTERED: &str = r#"
import functools, importlib, sys
sys.path.append("/usr/share/sipvicious")
from sipvicious.libs import svhelper
tool, address, agent = (sys.argv.pop(1) for _ in range(3))
if agent:
    request = svhelper.makeRequest
    request.__defaults__ = tuple(
        agent if value == "friendly-scanner" else value for value in request.__defaults__)
sys.argv[0] = tool
module = importlib.import_module("sipvicious." + tool)
for name in ("ASipOfRedWine", "TakeASip"):
    if hasattr(module, name):
        setattr(module, name, functools.partial(getattr(module, name), bindingip=address))
module.main()
"#;
