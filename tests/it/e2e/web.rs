//! The web page in a real headless browser: desktop and phone, light and dark, idle and under
//! attack. Needs root, Linux 6.6 or later, and chromium. With SIP_XDP_SCREENSHOTS=DIR the pictures
//! are kept there.

use std::fs;
use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::Result;
use sip_xdp_tests::browser::{DESKTOP, PHONE, text};
use sip_xdp_tests::forger::forge_sources;
use sip_xdp_tests::http::{self, METRICS};
use sip_xdp_tests::sip::Request;
use sip_xdp_tests::topology::{ATTACKER, PBX_WAN};
use sip_xdp_tests::{Browser, Filter, FilterOptions, Lab, Phone, Registrar, stream, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// A string that would run, or show, if it were taken for anything but text.
const HOSTILE: &str = "user \"<img src=x \
                       onerror=document.title='owned'>\
                       <script>document.title='owned'</script>&amp;\"";

#[test]
fn it_shows_nothing_and_everything() -> Result<()> {
    let lab = Lab::new()?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let list = lab.directory().join("list.txt");
    fs::write(&list, "192.0.2.1\n192.0.2.2\n")?;
    let configuration =
        format!("[[feeds]]\nname = \"example\"\nurl = \"file://{}\"\n", list.display());
    let filter = Filter::start_with(
        &lab.pbx,
        lab.directory(),
        FilterOptions { configuration, ..FilterOptions::default() },
    )?;
    wait_until("it answers", SOON, || Ok(http::get(&lab.pbx, METRICS, "/").is_ok()))?;
    let browser = Browser::new(&lab);

    let page = browser.page(DESKTOP)?;
    assert!(page.contains(">enforcing</span>"), "{page}");
    assert!(text(&page, "worst").contains("Nobody is kept out."), "{}", text(&page, "worst"));
    assert!(text(&page, "bans").contains("None since the daemon started."));
    assert!(text(&page, "feeds").contains("example"), "{}", text(&page, "feeds"));
    assert!(
        !page.contains("NaN") && !page.contains("undefined") && !page.contains("Infinity"),
        "{page}"
    );
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

    // Attacker-chosen strings are text: shown letter by letter, and never run.
    assert!(page.contains("&lt;img src=x onerror="), "{worst}");
    assert!(
        !page.contains("<img") && page.contains("<title>sip-xdp</title>"),
        "the hostile text was taken for a page"
    );
    assert_eq!(page.matches("<script").count(), 1);

    // A page wider than the window would be cut off: its contents wrap instead.
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

/// Packets of implausibly many forged sources, which the page reports first.
#[test]
fn it_shows_a_storm() -> Result<()> {
    let lab = Lab::new()?;
    lab.accept_forgeries()?;
    let configuration = "[limits.storm]\nnew_sources = { count = 200, per = \"1s\" }\n".to_owned();
    let filter = Filter::start_with(
        &lab.pbx,
        lab.directory(),
        FilterOptions { configuration, ..FilterOptions::default() },
    )?;
    wait_until("it answers", SOON, || Ok(http::get(&lab.pbx, METRICS, "/").is_ok()))?;
    let to = SocketAddrV4::new(PBX_WAN, 5060);
    let storm = forge_sources(&lab.attacker, to, 3_000, move |number, from| {
        let call_id = format!("storm-{number}");
        Request {
            method: "OPTIONS",
            user: "100",
            call_id: &call_id,
            sequence: 1,
            from: from.into(),
            to: to.into(),
        }
        .bytes()
    })?;
    wait_until("strangers' packets are dropped", SOON, || {
        Ok(filter.packets("wan", "drop.storm")? > 1_000)
    })?;
    let browser = Browser::new(&lab);
    let page = browser.page(DESKTOP)?;
    let warnings = text(&page, "warnings");
    assert!(warnings.contains("a storm: more new sources than can be real"), "{warnings}");
    let tiles = text(&page, "tiles");
    assert!(tiles.contains("yes") && !page.contains("NaN"), "{tiles}");
    assert!(text(&page, "reasons").contains("storm"), "{}", text(&page, "reasons"));
    for (name, window, dark) in
        [("web-storm", DESKTOP, false), ("web-storm-phone-dark", PHONE, true)]
    {
        assert!(browser.picture(name, window, dark)? > 20_000, "{name} is empty");
    }
    let sent = storm.stop()?;
    println!("{sent} packets were forged");
    filter.nobody_is_banned("in a storm of forged packets")?;

    // Its end is shown as well.
    wait_until("it is over", SOON, || {
        Ok(!filter.json(&["status"])?["warnings"].to_string().contains("a storm"))
    })?;
    let page = browser.page(DESKTOP)?;
    assert!(!text(&page, "warnings").contains("a storm"), "{}", text(&page, "warnings"));
    Ok(())
}
