//! A real browser for the web page.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::http::METRICS;
use crate::process::output;
use crate::topology::Lab;

/// Width and height of a desktop window.
pub const DESKTOP: (u32, u32) = (1280, 1100);
/// Those of a phone.
pub const PHONE: (u32, u32) = (500, 1500);

/// Headless Chromium inside the PBX.
#[derive(Debug)]
pub struct Browser<'a> {
    lab: &'a Lab,
}

impl<'a> Browser<'a> {
    /// A browser with its files in the lab's directory.
    pub fn new(lab: &'a Lab) -> Self {
        Self { lab }
    }

    fn command(&self, (width, height): (u32, u32), dark: bool) -> Command {
        let mut command = self.lab.pbx.command("chromium");
        let profile = self.lab.directory().join(format!("chromium-{width}-{dark}"));
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-sync",
        ]);
        command.args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-dev-shm-usage",
        ]);
        command.args(["--hide-scrollbars", "--virtual-time-budget=60000", "--timeout=60000"]);
        command
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg(format!("--window-size={width},{height}"));
        command.env("HOME", self.lab.directory());
        if dark {
            command.arg("--blink-settings=preferredColorScheme=0");
        }
        command
    }

    /// The page after its script has run for a while.
    pub fn page(&self, window: (u32, u32)) -> Result<String> {
        let output = output(
            self.command(window, false).arg("--dump-dom").arg(format!("http://{METRICS}/")),
        )?;
        ensure!(
            output.status.success(),
            "chromium failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A screenshot. Returns its size in bytes, which distinguishes an empty page.
    pub fn picture(&self, name: &str, window: (u32, u32), dark: bool) -> Result<u64> {
        let directory = env::var_os("SIP_XDP_SCREENSHOTS")
            .map_or_else(|| self.lab.directory().to_path_buf(), PathBuf::from);
        let file = directory.join(format!("{name}.png"));
        let screenshot = format!("--screenshot={}", file.display());
        let output =
            output(self.command(window, dark).arg(screenshot).arg(format!("http://{METRICS}/")))?;
        ensure!(
            output.status.success(),
            "chromium failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let picture = fs::read(&file).context("no picture")?;
        let number = |at: usize| {
            picture
                .get(at..at + 4)
                .and_then(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?)))
        };
        assert_eq!(
            (number(16), number(20)),
            (Some(window.0), Some(window.1)),
            "{name} has another size"
        );
        Ok(picture.len() as u64)
    }
}

/// The text of an element by id, without tags.
pub fn text(page: &str, id: &str) -> String {
    let Some((_, rest)) = page.split_once(&format!("id=\"{id}\"")) else { return String::new() };
    let end = ["</table>", "</section>", "</header>"]
        .iter()
        .filter_map(|end| rest.find(end))
        .min()
        .unwrap_or(rest.len());
    let mut is_tag = true;
    let text = rest[..end].chars().filter_map(|c| match c {
        '<' => {
            is_tag = true;
            Some(' ')
        }
        '>' if is_tag => {
            is_tag = false;
            None
        }
        _ => (!is_tag).then_some(c),
    });
    text.collect()
}
