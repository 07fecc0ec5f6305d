//! A real Asterisk with pjsip, from a directory that `cargo xtask asterisk` makes.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::namespace::{Namespace, unique_name};
use crate::process::Process;
use crate::registrar::phone_password;

/// The extensions that it has: 1000 and so many more.
pub const EXTENSIONS: u16 = 60;

/// What may go on at its start.
const START: Duration = Duration::from_secs(60);

/// Asterisk in the foreground; ends when dropped.
#[derive(Debug)]
pub struct Asterisk {
    process: Process,
    /// Its configuration, as it is seen from outside.
    directory: PathBuf,
}

impl Asterisk {
    /// Starts the one in a directory, on port 5060 of every address of a namespace, and waits until
    /// it serves. A carrier at this address delivers and takes calls without credentials.
    pub fn start(namespace: &Namespace, root: &Path, carrier: Ipv4Addr) -> Result<Self> {
        let inside = Path::new("/tmp").join(unique_name());
        let directory = root.join("tmp").join(inside.file_name().unwrap_or_default());
        for part in ["spool", "cache"] {
            fs::create_dir_all(directory.join(part))
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let place = inside.display().to_string();
        for (name, text) in [
            ("asterisk.conf", ASTERISK.replace("@PLACE@", &place)),
            ("modules.conf", MODULES.to_owned()),
            ("logger.conf", LOGGER.to_owned()),
            ("extensions.conf", DIALPLAN.to_owned()),
            ("pjsip.conf", pjsip(carrier)),
        ] {
            fs::write(directory.join(name), text)
                .with_context(|| format!("cannot write {name}"))?;
        }
        let mut command = namespace.command("chroot");
        command
            .arg(root)
            .arg("asterisk")
            .arg("-C")
            .arg(inside.join("asterisk.conf"))
            .args(["-f", "-n"]);
        let mut process = Process::spawn("asterisk", &mut command)?;
        process.wait_line(START, |line| line.text.contains("Asterisk Ready"))?;
        Ok(Self { process, directory })
    }

    /// The end of its log, for messages.
    pub fn log(&self) -> String {
        self.process.tail()
    }
}

impl Drop for Asterisk {
    fn drop(&mut self) {
        // What is left when it does not end in time is killed with its namespace.
        let _ = self.process.stop(Signal::SIGTERM);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Its users: extensions with the passwords of phones, and a trunk that authenticates.
fn pjsip(carrier: Ipv4Addr) -> String {
    let mut text = PJSIP.replace("@CARRIER@", &carrier.to_string());
    let extensions = (0..EXTENSIONS).map(|number| (1_000 + number).to_string());
    for user in extensions.chain(["trunk1".to_owned()]) {
        let password = phone_password(&user);
        // Writing to a string is infallible.
        let _ = write!(
            text,
            "[{user}](phone)\nauth={user}\naors={user}\n\
             [{user}](login)\nusername={user}\npassword={password}\n\
             [{user}](place)\nmailboxes={user}@default\n"
        );
    }
    text
}

/// Everything that it writes goes into a directory of this test.
const ASTERISK: &str = "[directories]
astcachedir => @PLACE@/cache
astetcdir => @PLACE@
astmoddir => /usr/lib/x86_64-linux-gnu/asterisk/modules
astvarlibdir => @PLACE@
astdbdir => @PLACE@
astkeydir => @PLACE@
astdatadir => /usr/share/asterisk
astagidir => @PLACE@
astspooldir => @PLACE@/spool
astrundir => @PLACE@
astlogdir => @PLACE@
";

const MODULES: &str = "[modules]\nautoload=yes\n";

const LOGGER: &str = "[logfiles]\nconsole => notice,warning,error\n";

const PJSIP: &str = "[udp]
type=transport
protocol=udp
bind=0.0.0.0:5060
[phone](!)
type=endpoint
context=inside
disallow=all
allow=ulaw
direct_media=no
rtp_symmetric=yes
force_rport=yes
rewrite_contact=yes
[login](!)
type=auth
auth_type=userpass
[place](!)
type=aor
max_contacts=1
remove_existing=yes
qualify_frequency=5
[carrier]
type=endpoint
context=inside
disallow=all
allow=ulaw
aors=carrier
direct_media=no
[carrier]
type=aor
contact=sip:@CARRIER@:5060
[carrier]
type=identify
endpoint=carrier
match=@CARRIER@
";

/// Extensions are called, watched, and what begins with 9 goes to the carrier.
const DIALPLAN: &str = "[inside]
exten => _1XXX,1,Dial(PJSIP/${EXTEN},20)
exten => _1XXX,hint,PJSIP/${EXTEN}
exten => _9X.,1,Dial(PJSIP/${EXTEN:1}@carrier,20)
";
