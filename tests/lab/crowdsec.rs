//! A real CrowdSec local API, with `cscli`. Configuration, database and credentials are its own, it
//! listens on the loopback interface of a namespace, and it has no access to outside APIs.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::namespace::{Namespace, unique_name};
use crate::process::{Process, succeed};
use crate::wait_until;

/// Start timeout.
const READY: Duration = Duration::from_secs(60);

/// Listening address.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// A machine that may publish bans.
pub const LOGIN: &str = "gw1";

/// The key of a reader.
const KEY: &str = "a-key-for-the-lab";

/// The server; ends when dropped.
#[derive(Debug)]
pub struct Crowdsec<'a> {
    namespace: &'a Namespace,
    directory: PathBuf,
    process: Option<Process>,
}

impl<'a> Crowdsec<'a> {
    /// Starts one in a namespace, and waits until it responds.
    pub fn start(namespace: &'a Namespace, directory: &Path) -> Result<Self> {
        let directory = directory.join(format!("crowdsec-{}", unique_name()));
        configure(&directory).context("cannot configure CrowdSec")?;
        let mut server = Self { namespace, directory, process: None };
        let own = server.directory.join("own.yaml").display().to_string();
        server.cscli(&["machines", "add", "cscli", "--password", "cscli", "-f", &own])?;
        let password = "a password, with ' and \" in it";
        fs::write(server.password_file(), format!("{password}\n"))?;
        let unused = server.directory.join("unused.yaml").display().to_string();
        server.cscli(&["machines", "add", LOGIN, "--password", password, "-f", &unused])?;
        server.cscli(&["bouncers", "add", "sip-xdp", "--key", KEY])?;
        fs::write(server.key_file(), format!("{KEY}\n"))?;
        server.launch()?;
        Ok(server)
    }

    /// Starts it again with its database.
    pub fn launch(&mut self) -> Result<()> {
        let mut command = self.namespace.command("crowdsec");
        // Only the local API, without its own detection.
        command
            .current_dir(&self.directory)
            .arg("-c")
            .arg(self.directory.join("config.yaml"))
            .arg("-no-cs");
        let mut process = Process::spawn("crowdsec", &mut command)?;
        let answers = || self.namespace.enter(|| Ok(TcpStream::connect(ADDRESS).is_ok()));
        wait_until("CrowdSec answers", READY, || Ok(process.try_wait()?.is_some() || answers()?))?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends it.
    pub fn stop(&mut self) -> Result<()> {
        self.process.take().context("CrowdSec is not running")?.stop(Signal::SIGTERM).map(drop)
    }

    /// Runs `cscli`, which must succeed.
    pub fn cscli(&self, arguments: &[&str]) -> Result<String> {
        succeed(self.command().args(arguments))
    }

    /// Active decisions, as `cscli decisions list` shows them: value, scenario and duration.
    pub fn decisions(&self) -> Result<Vec<(String, String, String)>> {
        let text = succeed(self.command().args(["decisions", "list", "-o", "json"]))?;
        let alerts: Value =
            serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))?;
        let decisions = alerts
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|alert| alert["decisions"].as_array());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(decisions
            .flatten()
            .map(|one| (text(&one["value"]), text(&one["scenario"]), text(&one["duration"])))
            .collect())
    }

    /// Its URL inside the namespace.
    pub fn url(&self) -> String {
        format!("http://{ADDRESS}")
    }

    /// The file with the password of [`LOGIN`].
    pub fn password_file(&self) -> PathBuf {
        self.directory.join("password")
    }

    /// The file with a reader's key.
    pub fn key_file(&self) -> PathBuf {
        self.directory.join("key")
    }

    /// The end of its log, for messages.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::tail).unwrap_or_default()
    }

    fn command(&self) -> Command {
        let mut command = self.namespace.command("cscli");
        command.arg("-c").arg(self.directory.join("config.yaml")).arg("--error");
        command
    }
}

fn configure(directory: &Path) -> Result<()> {
    for part in ["data", "hub", "notifications", "plugins"] {
        fs::create_dir_all(directory.join(part))?;
    }
    fs::write(directory.join("hub/.index.json"), "{}")?;
    fs::write(directory.join("simulation.yaml"), "simulation: false\n")?;
    fs::write(
        directory.join("profiles.yaml"),
        "name: none\nfilters:\n - Alert.Remediation == false\ndecisions: []\non_success: break\n",
    )?;
    fs::write(directory.join("config.yaml"), configuration(&directory.display().to_string()))?;
    Ok(())
}

/// No Central API, no console, no metrics, no plugins.
fn configuration(directory: &str) -> String {
    format!(
        "common:\n  daemonize: false\n  log_media: stdout\n  log_level: info\n  working_dir: \
         {directory}\n\
         config_paths:\n  config_dir: {directory}\n  data_dir: {directory}/data\n\
         \x20 simulation_path: {directory}/simulation.yaml\n  hub_dir: {directory}/hub\n\
         \x20 index_path: {directory}/hub/.index.json\n  notification_dir: \
         {directory}/notifications\n\
         \x20 plugin_dir: {directory}/plugins\n\
         cscli:\n  output: human\n  color: no\n\
         db_config:\n  log_level: info\n  type: sqlite\n  db_path: \
         {directory}/data/crowdsec.db\n  use_wal: true\n\
         api:\n  client:\n    credentials_path: {directory}/own.yaml\n\
         \x20 server:\n    log_level: info\n    listen_uri: {ADDRESS}\n    profiles_path: \
         {directory}/profiles.yaml\n\
         prometheus:\n  enabled: false\n"
    )
}
