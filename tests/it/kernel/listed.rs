//! Listed means enforced: every visible ledger row is enforced at once, and remains of a crashed
//! writer have no effect.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sip_xdp::dataplane::loader::Settings;
use sip_xdp::dataplane::tables::ledger::{Entry, Ledger};
use sip_xdp::lists::Lists;
use sip_xdp::net::network::Network;
use sip_xdp_common::abi::layout::{List, NEVER, Owner};
use sip_xdp_common::abi::names;

use crate::kernel::frames::{Ip, request, udp_from};
use crate::kernel::harness::{Kernel, settings};

/// Minimum number of visible entries for a valid test.
const LEAST_SEEN: usize = 200;
/// Timeout of that.
const MOST: Duration = Duration::from_secs(60);
/// Networks with exceptions from blocks.
const AROUND: &str = "10.0.0.0/8";
const PORT: u16 = 5_070;
const DROP: u32 = 1;
const PASS: u32 = 2;

/// An entry for a network that is unique to its round.
fn entry(text: String, port: Option<u16>, owner: Owner) -> Entry {
    Entry { port, owner, ..Entry::manual(text.parse().unwrap(), NEVER, "listed") }
}

/// A network of a new prefix length, so that the writer waits for a grace period.
fn fresh_length(round: u32) -> String {
    let number = round % 0xffff;
    match round % 3 {
        0 => format!("2001:db8:{number:x}::/{}", 49 + round % 60),
        1 => format!("172.{}.{}.0/{}", 16 + round / 250 % 16, round % 250, 24 + round % 7),
        _ => format!("2001:db8:{number:x}::1"),
    }
}

/// All operations that add an entry and remove it again.
fn write(mut lists: Lists, stop: &AtomicBool) {
    for round in (1_u32..).take_while(|_| !stop.load(Ordering::Relaxed)) {
        // Trusted inside a block, admitted outside.
        let (allowed, net) =
            if round.is_multiple_of(2) { (List::Trust, 10) } else { (List::Admit, 11) };
        let inside =
            format!("{net}.{}.{}.{}", round / 60_000 % 250, round / 250 % 240, round % 250);
        let one = entry(fresh_length(round), None, Owner::Manual);
        let flow = entry(format!("192.0.2.{}", round % 250), Some(PORT), Owner::Auto);
        let several: Vec<_> = (0..4_u8)
            .map(|n| {
                entry(
                    format!("198.{}.{}.{n}", 18 + round / 250 % 2, round % 250),
                    None,
                    Owner::Tool,
                )
            })
            .chain([entry(
                format!("2001:db8:{:x}:1::/{}", round % 0xffff, 64 + round % 60),
                None,
                Owner::Auto,
            )])
            .collect();
        lists.put(List::Block, one.clone()).unwrap();
        // Changed while listed.
        lists.put(List::Block, Entry { reason: "again".to_owned(), ..one.clone() }).unwrap();
        lists.put(List::Block, flow.clone()).unwrap();
        lists.put_all(List::Block, several.clone()).unwrap();
        lists.put(allowed, entry(inside.clone(), None, Owner::Manual)).unwrap();
        lists.remove(allowed, &inside.parse().unwrap(), Owner::Manual).unwrap();
        for entry in several.iter().chain([&one]) {
            lists.remove(List::Block, &entry.network, entry.owner).unwrap();
        }
        lists.remove_flows(&flow.network).unwrap();
        // Drops unused prefix lengths, so that the next round's are new again.
        let network: Network = format!("203.0.113.{}", round % 250).parse().unwrap();
        lists.replace_feed("feed", vec![network]).unwrap();
    }
}

fn frame(entry: &Entry) -> Vec<u8> {
    let source = entry.network.address().to_string();
    Ip::udp(&source).frame(&udp_from(PORT, 5060, &request("REGISTER")))
}

/// Repeatedly reads the ledger and runs the program, while the lists change.
fn ask(settings: &Settings, expected: impl Fn(List) -> Option<u32>) {
    let mut kernel = Kernel::new(settings);
    kernel.list(List::Block, AROUND, NEVER);
    let lists = Lists::open(|name| kernel.map_again(name)).unwrap();
    let ledger = Ledger::new(kernel.map_again(names::LEDGER).unwrap()).unwrap();
    let stop = AtomicBool::new(false);
    let (mut seen, mut wrong, start) = (0, Vec::new(), Instant::now());
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(lists, &stop));
        while seen < LEAST_SEEN
            && start.elapsed() < MOST
            && wrong.len() < 10
            && !writer.is_finished()
        {
            for (list, entry) in ledger.entries().unwrap() {
                let Some(action) = expected(list).filter(|_| entry.reason != "test") else {
                    continue;
                };
                let is = kernel.action(&frame(&entry));
                let is_listed = ledger.get(list, &entry.network, entry.port, entry.owner).is_some();
                // An entry that is gone meanwhile proves nothing.
                if is != action && is_listed {
                    wrong.push(format!(
                        "{} {} on the {} list",
                        entry.place(),
                        entry.owner.name(),
                        list.name()
                    ));
                }
                seen += usize::from(is_listed);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("{seen} entries seen listed in {:.1} s", start.elapsed().as_secs_f64());
    assert!(wrong.is_empty(), "listed, but not enforced: {wrong:?}");
    assert!(seen >= LEAST_SEEN, "only {seen} entries were seen listed");
}

#[test]
fn listed_entries_are_enforced_at_once() {
    ask(&settings(), |list| match list {
        List::Block => Some(DROP),
        List::Trust => Some(PASS),
        List::Admit => None,
    });
}

#[test]
fn listed_entries_are_enforced_at_once_under_a_closed_policy() {
    ask(&Settings { closed: true, ..settings() }, |list| match list {
        List::Block => Some(DROP),
        List::Trust | List::Admit => Some(PASS),
    });
}

/// Both sides of each change at the moment of a crash: pending rows, and tables before or after the
/// change.
#[test]
fn pending_rows_count_nowhere() {
    let mut kernel = Kernel::new(&settings());
    let texts = [
        "192.0.2.1",
        "192.0.2.2",
        "198.51.100.0/24",
        "198.51.101.0/25",
        "2001:db8::1",
        "2001:db8:1::/57",
    ];
    let entries: Vec<_> = texts.map(|text| entry(text.to_owned(), None, Owner::Manual)).into();
    let flow = entry("192.0.2.9".to_owned(), Some(PORT), Owner::Auto);
    let changed = entry("192.0.2.10".to_owned(), None, Owner::Manual);
    let mut ledger = Ledger::new(kernel.map_again(names::LEDGER).unwrap()).unwrap();
    for (number, entry) in entries.iter().chain([&flow]).enumerate() {
        if number % 2 == 0 {
            // In the tables already, or still.
            kernel.lists.put(List::Block, entry.clone()).unwrap();
        }
        ledger.put_pending(List::Block, entry).unwrap();
    }
    // The tables have another end than the row, which is not pending: it was listed throughout.
    kernel.lists.put(List::Block, Entry { expires: 1, ..changed.clone() }).unwrap();
    ledger.put(List::Block, &changed).unwrap();

    assert_eq!(
        ledger.entries().unwrap(),
        [(List::Block, changed.clone())],
        "listed although pending"
    );
    kernel.lists = Lists::open(|name| kernel.map_again(name)).unwrap();
    assert_eq!(kernel.lists.entries(List::Block).collect::<Vec<_>>(), [&changed]);
    for entry in entries.iter().chain([&flow]) {
        assert_eq!(
            kernel.action(&frame(entry)),
            PASS,
            "{} is blocked and on no list",
            entry.place()
        );
    }
    assert_eq!(
        kernel.action(&frame(&changed)),
        DROP,
        "{} is listed and not blocked",
        changed.place()
    );
    assert_eq!(ledger.drop_pending().unwrap(), 0, "pending rows were left");
    // Their slots are free, and can be used again.
    for entry in entries.iter().chain([&flow]) {
        kernel.lists.put(List::Block, entry.clone()).unwrap();
        assert_eq!(kernel.action(&frame(entry)), DROP, "{} is not blocked", entry.place());
    }
    assert_eq!(ledger.entries().unwrap().len(), entries.len() + 2);
}
