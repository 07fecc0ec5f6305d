//! A real terminal for full-screen programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::unistd::Pid;

use crate::process::succeed;
use crate::topology::Lab;
use crate::wait_until;

/// Timeout of a visible change.
const SOON: Duration = Duration::from_secs(20);

/// A terminal in its own tmux server.
#[derive(Debug)]
pub struct Terminal {
    socket: PathBuf,
    directory: PathBuf,
}

impl Terminal {
    /// Starts a shell in it.
    pub fn start(lab: &Lab, width: u16, height: u16) -> Result<Self> {
        let directory = lab.directory().to_path_buf();
        let terminal = Self { socket: directory.join("tmux"), directory };
        let (width, height) = (width.to_string(), height.to_string());
        let shell = "env PS1='prompt> ' TERM=screen-256color LC_ALL=C.UTF-8 sh";
        terminal.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            &width,
            "-y",
            &height,
            shell,
        ])?;
        terminal.wait("a prompt", |screen| screen.contains("prompt>"))?;
        Ok(terminal)
    }

    /// A command of tmux.
    pub fn tmux(&self, arguments: &[&str]) -> Result<String> {
        succeed(
            Command::new("tmux")
                .env("LC_ALL", "C.UTF-8")
                .arg("-u")
                .arg("-S")
                .arg(&self.socket)
                .args(arguments),
        )
    }

    /// Types text as it is.
    pub fn type_text(&self, text: &str) -> Result<()> {
        self.tmux(&["send-keys", "-l", text]).map(drop)
    }

    /// Presses a key by its name.
    pub fn press(&self, key: &str) -> Result<()> {
        self.tmux(&["send-keys", key]).map(drop)
    }

    /// Its visible text.
    pub fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until its text satisfies a condition, and returns it.
    pub fn wait(&self, what: &str, condition: impl Fn(&str) -> bool) -> Result<String> {
        let mut screen = String::new();
        wait_until(what, SOON, || {
            screen = self.screen()?;
            Ok(condition(&screen))
        })
        .with_context(|| format!("the screen is:\n{screen}"))?;
        Ok(screen)
    }

    /// Resizes it, in columns and lines.
    pub fn resize(&self, width: u16, height: u16) -> Result<()> {
        self.tmux(&["resize-window", "-x", &width.to_string(), "-y", &height.to_string()]).map(drop)
    }

    /// Runs a command from its shell, which prints `left` with its status, and returns the
    /// command's process id.
    pub fn run(&self, command: &Command) -> Result<Pid> {
        let words = command.get_args().map(|word| word.to_string_lossy().into_owned());
        let line: Vec<_> = [command.get_program().to_string_lossy().into_owned()]
            .into_iter()
            .chain(words)
            .collect();
        let settings = command.get_envs().filter_map(|(name, value)| {
            Some(format!("{}={}", name.to_string_lossy(), value?.to_string_lossy()))
        });
        let note = self.directory.join("terminal.pid");
        let _ = fs::remove_file(&note);
        let settings = settings.collect::<Vec<_>>().join(" ");
        // The shell's process id becomes that of the program.
        let script = self.directory.join("terminal.sh");
        let run = format!("echo $$ > {}; exec env {settings} {}", note.display(), line.join(" "));
        fs::write(&script, run).context("cannot write a script")?;
        self.type_text(&format!("sh {}; echo left with $?", script.display()))?;
        self.press("Enter")?;
        let mut pid = None;
        wait_until("the command has started", SOON, || {
            pid = fs::read_to_string(&note).ok().and_then(|pid| pid.trim().parse().ok());
            Ok(pid.is_some())
        })?;
        pid.map(Pid::from_raw).context("it was just read")
    }

    /// Records the raw output of programs to a file from now on.
    pub fn record(&self, file: &Path) -> Result<()> {
        self.tmux(&["pipe-pane", "-O", &format!("cat > {}", file.display())]).map(drop)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The shell ends with it.
        let _ = self.tmux(&["kill-server"]);
    }
}
