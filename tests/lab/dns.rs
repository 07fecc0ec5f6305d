//! A test's own name server: dnsmasq with configured records only.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::namespace::{Namespace, unique_name};
use crate::process::Process;
use crate::wait_until;

/// The domain that it answers for authoritatively.
pub const DOMAIN: &str = "carrier.example";

/// A name server at an address of a namespace, running or not.
#[derive(Debug)]
pub struct NameServer<'a> {
    namespace: &'a Namespace,
    address: IpAddr,
    resolv_conf: PathBuf,
    process: Option<Process>,
}

impl<'a> NameServer<'a> {
    /// A stopped one, with a resolv.conf that names it.
    pub fn prepare(
        namespace: &'a Namespace,
        address: impl Into<IpAddr>,
        directory: &Path,
    ) -> Result<Self> {
        let address = address.into();
        let resolv_conf = directory.join(format!("{}-resolv.conf", unique_name()));
        let text = format!("nameserver {address}\noptions timeout:1 attempts:1\n");
        fs::write(&resolv_conf, text)
            .with_context(|| format!("cannot write {}", resolv_conf.display()))?;
        Ok(Self { namespace, address, resolv_conf, process: None })
    }

    /// The resolv.conf.
    pub fn resolv_conf(&self) -> &Path {
        &self.resolv_conf
    }

    /// Serves exactly these records, in dnsmasq's options (`host-record=NAME,ADDRESS`,
    /// `srv-host=NAME,TARGET,PORT`).
    pub fn serve(&mut self, records: &[String]) -> Result<()> {
        self.stop()?;
        let mut command = self.namespace.command("dnsmasq");
        command.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--pid-file",
            "--user=root",
            "--log-facility=-",
        ]);
        command.args(["--no-resolv", "--no-hosts", "--bind-interfaces", "--local-ttl=1"]);
        command
            .arg(format!("--listen-address={}", self.address))
            .arg(format!("--local=/{DOMAIN}/"));
        command.args(records.iter().map(|record| format!("--{record}")));
        self.process = Some(Process::spawn("dnsmasq", &mut command)?);
        wait_until("the name server answers", Duration::from_secs(10), || self.answers()).map(drop)
    }

    /// Stops serving: queries get an ICMP error.
    pub fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.stop(Signal::SIGTERM).map(drop),
            None => Ok(()),
        }
    }

    /// Whether it responds to a query for the root.
    fn answers(&self) -> Result<bool> {
        let (from, to) = (SocketAddr::new(self.address, 0), SocketAddr::new(self.address, 53));
        let socket =
            self.namespace.enter(|| UdpSocket::bind(from).context("cannot make a socket"))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        // One query of class IN for the type A of the root (RFC 1035, 4.1).
        let question = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1];
        Ok(socket.send_to(&question, to).is_ok() && socket.recv(&mut [0; 512]).is_ok())
    }
}
