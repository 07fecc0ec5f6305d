//! The trusted zone of FreePBX's own firewall, as `fwconsole firewall list trusted` prints it.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::Mention;

/// Paths of the program, on FreePBX's own distribution and others.
const PROGRAMS: [&str; 3] =
    ["/usr/sbin/fwconsole", "/var/lib/asterisk/bin/fwconsole", "/usr/local/sbin/fwconsole"];

/// Timeout: it starts PHP and queries a database.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Maximum length of its output, in bytes.
const LONGEST: u64 = 1 << 20;

/// The command, as an operator would type it.
pub(super) const COMMAND: &str = "fwconsole firewall list trusted";

/// Members of the trusted zone; `None` without FreePBX.
pub(super) fn trusted() -> Option<Vec<Mention>> {
    let program = PROGRAMS.iter().map(Path::new).find(|path| path.exists())?;
    Some(mentions(&run(program, TIMEOUT)?))
}

/// The program's output; `None` on failure or timeout.
fn run(program: &Path, timeout: Duration) -> Option<String> {
    let mut child = Command::new(program)
        .args(["firewall", "list", "trusted"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let output = child.stdout.take()?;
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        output.take(LONGEST).read_to_end(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text).into_owned())
    });
    let end = Instant::now() + timeout;
    let status = loop {
        match child.try_wait().ok()? {
            Some(status) => break status,
            None if Instant::now() >= end => {
                // It may have ended in the meantime.
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    reader.join().ok()?.filter(|_| status.success())
}

/// Entries are indented lines below a heading.
fn mentions(text: &str) -> Vec<Mention> {
    let lines = text.lines().enumerate();
    let entries = lines.filter(|(_, line)| line.starts_with(char::is_whitespace));
    entries
        .filter_map(|(number, line)| {
            let mut words = line.split_whitespace();
            let word = words.next()?;
            let is_alone = words.next().is_none();
            is_alone.then(|| Mention {
                text: word.to_owned(),
                what: "FreePBX trusted zone".to_owned(),
                line: number + 1,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_trusted_zone() {
        let text = "All entries in zone \
                    'trusted':\n\t203.0.113.0/24\n\t192.0.2.7/32\n\tsip.carrier.example\n\n";
        let found: Vec<_> =
            mentions(text).into_iter().map(|mention| (mention.text, mention.line)).collect();
        let expected = [("203.0.113.0/24", 2), ("192.0.2.7/32", 3), ("sip.carrier.example", 4)];
        assert_eq!(found, expected.map(|(text, line)| (text.to_owned(), line)));
        assert!(mentions("The firewall is not running.\n").is_empty());
    }

    #[test]
    fn a_program_that_fails_or_hangs_says_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let run = |script: &str| {
            let path = directory.path().join("fwconsole");
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            run(&path, Duration::from_millis(1_500))
        };
        assert_eq!(
            run("printf '%s %s %s\\n\\t192.0.2.7\\n' $1 $2 $3").unwrap(),
            "firewall list trusted\n\t192.0.2.7\n"
        );
        assert_eq!(run("echo ' 192.0.2.7'; exit 1"), None);
        assert_eq!(run("exec sleep 60"), None);
    }
}
