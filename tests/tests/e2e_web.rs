//! The web page in a real browser, without a screen: on a desktop and on a phone, light and dark, with nothing to show and under
//! attack. Needs root, Linux 6.6 or later, and chromium. With SIP_XDP_SCREENSHOTS=DIR the pictures are kept there.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sip_xdp_tests::http::{self, METRICS};
use sip_xdp_tests::process::output;
use sip_xdp_tests::topology::{ATTACKER, PBX_WAN};
use sip_xdp_tests::{Filter, FilterOptions, Lab, Phone, Registrar, stream, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// Widths and heights of a desktop's window and of a phone's.
const DESKTOP: (u32, u32) = (1280, 1100);
const PHONE: (u32, u32) = (500, 1500);

/// What would run, or show, if it were taken for anything but text.
const HOSTILE: &str = "user \"<img src=x onerror=document.title='owned'><script>document.title='owned'</script>&amp;\"";

struct Browser<'a> {
    lab: &'a Lab,
}

impl Browser<'_> {
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
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]);
        command.args(["--hide-scrollbars", "--virtual-time-budget=60000", "--timeout=60000"]);
        command.arg(format!("--user-data-dir={}", profile.display())).arg(format!("--window-size={width},{height}"));
        command.env("HOME", self.lab.directory());
        if dark {
            command.arg("--blink-settings=preferredColorScheme=0");
        }
        command
    }

    /// The page after its script has run for a while.
    fn page(&self, window: (u32, u32)) -> Result<String> {
        let output = output(self.command(window, false).arg("--dump-dom").arg(format!("http://{METRICS}/")))?;
        ensure!(output.status.success(), "chromium failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A picture of it. Returns its size in bytes, which tells an empty page from one with something on it.
    fn picture(&self, name: &str, window: (u32, u32), dark: bool) -> Result<u64> {
        let directory =
            env::var_os("SIP_XDP_SCREENSHOTS").map_or_else(|| self.lab.directory().to_path_buf(), PathBuf::from);
        let file = directory.join(format!("{name}.png"));
        let screenshot = format!("--screenshot={}", file.display());
        let output = output(self.command(window, dark).arg(screenshot).arg(format!("http://{METRICS}/")))?;
        ensure!(output.status.success(), "chromium failed: {}", String::from_utf8_lossy(&output.stderr));
        let picture = fs::read(&file).context("no picture")?;
        let number =
            |at: usize| picture.get(at..at + 4).and_then(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?)));
        assert_eq!((number(16), number(20)), (Some(window.0), Some(window.1)), "{name} has another size");
        Ok(picture.len() as u64)
    }
}

/// The text of an element by its id: everything up to its end, tags taken out.
fn text(page: &str, id: &str) -> String {
    let Some((_, rest)) = page.split_once(&format!("id=\"{id}\"")) else { return String::new() };
    let end =
        ["</table>", "</section>", "</header>"].iter().filter_map(|end| rest.find(end)).min().unwrap_or(rest.len());
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

#[test]
fn it_shows_nothing_and_everything() -> Result<()> {
    let lab = Lab::new()?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let list = lab.directory().join("list.txt");
    fs::write(&list, "192.0.2.1\n192.0.2.2\n")?;
    let configuration = format!("[[feeds]]\nname = \"example\"\nurl = \"file://{}\"\n", list.display());
    let filter =
        Filter::start_with(&lab.pbx, lab.directory(), FilterOptions { configuration, ..FilterOptions::default() })?;
    wait_until("it answers", SOON, || Ok(http::get(&lab.pbx, METRICS, "/").is_ok()))?;
    let browser = Browser { lab: &lab };

    let page = browser.page(DESKTOP)?;
    assert!(page.contains(">enforcing</span>"), "{page}");
    assert!(text(&page, "worst").contains("Nobody is kept out."), "{}", text(&page, "worst"));
    assert!(text(&page, "bans").contains("None since the daemon started."));
    assert!(text(&page, "feeds").contains("example"), "{}", text(&page, "feeds"));
    assert!(!page.contains("NaN") && !page.contains("undefined") && !page.contains("Infinity"), "{page}");
    browser.picture("web-nothing", DESKTOP, false)?;
    browser.picture("web-nothing-phone-dark", PHONE, true)?;

    assert_eq!(Phone::new(&lab.phone, lab.directory()).register()?.status, 200);
    filter.succeed(&["block", "add", "192.0.2.66", "--reason", HOSTILE])?;
    let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 300)?;
    filter.wait_for_ban(&ATTACKER.to_string(), SOON)?;
    let page = browser.page(DESKTOP)?;
    let (worst, bans) = (text(&page, "worst"), text(&page, "bans"));
    assert!(worst.contains(&ATTACKER.to_string()) && worst.contains("auto"), "{worst}");
    assert!(bans.contains(&ATTACKER.to_string()), "{bans}");
    assert!(text(&page, "reasons").contains("blocked"), "{}", text(&page, "reasons"));

    // What attackers choose is text: it is there letter by letter, and nothing of it runs.
    assert!(page.contains("&lt;img src=x onerror="), "{worst}");
    assert!(!page.contains("<img") && page.contains("<title>sip-xdp</title>"), "the hostile text was taken for a page");
    assert_eq!(page.matches("<script").count(), 1);

    // A page that is wider than the window would be cut off: what is in it breaks instead.
    for (name, window, dark) in [
        ("web", DESKTOP, false),
        ("web-dark", DESKTOP, true),
        ("web-phone", PHONE, false),
        ("web-phone-dark", PHONE, true),
    ] {
        let size = browser.picture(name, window, dark)?;
        println!("{name}: {size} bytes");
        assert!(size > 20_000, "{name} is empty: {size} bytes");
    }
    stream.stop().map(drop)
}
