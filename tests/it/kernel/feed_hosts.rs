//! Feed hosts in their rows: rows with more hosts than room, hosts with other owners, and crashes.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering::Relaxed;

use sip_xdp::dataplane::mmap::Mapped;
use sip_xdp::dataplane::tables::header;
use sip_xdp::dataplane::tables::ledger::Entry;
use sip_xdp::lists::Lists;
use sip_xdp::net::network::Network;
use sip_xdp_common::abi::layout::{List, NEVER, Owner};
use sip_xdp_common::abi::names;
use sip_xdp_common::lookup::host_rows::{ELSEWHERE_SHIFT, MARKS, RowKey};
use sip_xdp_common::lookup::networks::Hashing;

use crate::kernel::frames::{Ip, tcp};
use crate::kernel::harness::{Kernel, SECOND, START, settings};

/// Hosts in 77.0.0.0/8 that share a row.
pub(crate) fn of_one_row(kernel: &Kernel, count: usize) -> Vec<Ipv4Addr> {
    let Hashing { seed, row_shift, .. } = hashing(kernel);
    let row = |address: u32| RowKey::of(address, seed, row_shift).row;
    let all = 0x4d00_0000..0x4e00_0000_u32;
    all.filter(|address| row(*address) == 77).take(count).map(Ipv4Addr::from).collect()
}

fn hashing(kernel: &Kernel) -> Hashing {
    header::read(kernel.map_again(names::TABLE_HEADER).unwrap()).unwrap().hashing
}

/// Number of hosts of the row that are held elsewhere.
fn elsewhere(kernel: &Kernel) -> u64 {
    let rows = Mapped::new(kernel.map_again(names::FEED_HOSTS).unwrap()).unwrap();
    rows.one(77).unwrap().words()[1].load(Relaxed) >> ELSEWHERE_SHIFT
}

/// The numbers of the dropped ones among these hosts.
fn dropped(kernel: &mut Kernel, hosts: &[Ipv4Addr]) -> Vec<usize> {
    let frame =
        |host: &Ipv4Addr| Ip { protocol: 6, ..Ip::udp(&host.to_string()) }.frame(&tcp(5060));
    (0..hosts.len()).filter(|n| kernel.action(&frame(&hosts[*n])) == 1).collect()
}

fn feed(kernel: &mut Kernel, hosts: &[Ipv4Addr]) {
    let networks = hosts.iter().map(|host| Network::host((*host).into())).collect();
    kernel.lists.replace_feed("feed", networks).unwrap();
}

fn block(kernel: &mut Kernel, host: Ipv4Addr, until: u64) {
    kernel.list(List::Block, &host.to_string(), until);
}

fn numbers(range: std::ops::Range<usize>) -> Vec<usize> {
    range.collect()
}

#[test]
fn a_row_with_too_many_hosts_says_where_the_others_are() {
    let mut kernel = Kernel::new(&settings());
    let hosts = of_one_row(&kernel, 3 * MARKS);
    for listed in [1, MARKS, MARKS + 1, 2 * MARKS, MARKS - 1, 0, 2 * MARKS] {
        feed(&mut kernel, &hosts[..listed]);
        assert_eq!(dropped(&mut kernel, &hosts), numbers(0..listed), "{listed} listed");
    }
    assert_eq!(elsewhere(&kernel), MARKS as u64);
    // Other hosts of the feed, among them one that had no room: hosts that stay keep their place.
    feed(&mut kernel, &hosts[MARKS..3 * MARKS]);
    assert_eq!(dropped(&mut kernel, &hosts), numbers(MARKS..3 * MARKS));
    assert_eq!(elsewhere(&kernel), MARKS as u64);
    feed(&mut kernel, &[]);
    assert_eq!((dropped(&mut kernel, &hosts), elsewhere(&kernel)), (Vec::new(), 0));
}

#[test]
fn a_ban_expires_independently_of_a_feed() {
    let mut kernel = Kernel::new(&settings());
    let hosts = of_one_row(&kernel, 5);
    let end = START + 10 * SECOND;
    // Banned while on the feed; banned before; only banned; only on the feed.
    feed(&mut kernel, &[hosts[0], hosts[3]]);
    (0..3).for_each(|n| block(&mut kernel, hosts[n], end));
    feed(&mut kernel, &[hosts[0], hosts[1], hosts[3]]);
    assert_eq!(dropped(&mut kernel, &hosts), [0, 1, 2, 3]);
    feed(&mut kernel, &[hosts[3]]);
    assert_eq!(dropped(&mut kernel, &hosts), [0, 1, 2, 3], "the bans go on");
    kernel.set_clock(end);
    assert_eq!(dropped(&mut kernel, &hosts), [3], "the kernel has ended them");
    kernel.lists.expire(end).unwrap();
    assert_eq!((dropped(&mut kernel, &hosts), elsewhere(&kernel)), (vec![3], 0));
    // Conversely: the feed's entry outlasts the ban.
    block(&mut kernel, hosts[3], end + SECOND);
    kernel.set_clock(end + SECOND);
    kernel.lists.expire(end + SECOND).unwrap();
    assert_eq!(
        (dropped(&mut kernel, &hosts), elsewhere(&kernel)),
        (vec![3], 1),
        "it stays where it is"
    );
}

#[test]
fn a_ban_counts_its_hits_exactly_in_a_row_of_others() {
    let mut kernel = Kernel::new(&settings());
    let hosts = of_one_row(&kernel, 4);
    feed(&mut kernel, &hosts[..2]);
    block(&mut kernel, hosts[1], NEVER);
    block(&mut kernel, hosts[2], NEVER);
    for _ in 0..100 {
        assert_eq!(dropped(&mut kernel, &hosts), [0, 1, 2]);
    }
    for banned in [hosts[1], hosts[2]] {
        assert_eq!(kernel.lists.hits(&Network::host(banned.into())), 100, "{banned}");
    }
}

#[test]
fn rows_that_a_crash_left_wrong_are_put_right() {
    let mut kernel = Kernel::new(&settings());
    let hosts = of_one_row(&kernel, 2 * MARKS);
    feed(&mut kernel, &hosts[..MARKS + 1]);
    block(&mut kernel, hosts[MARKS + 1], NEVER);
    let Hashing { seed, row_shift, .. } = hashing(&kernel);
    let mark = |n: usize| u64::from(RowKey::of(hosts[n].into(), seed, row_shift).mark);
    let truth = numbers(0..MARKS + 2);
    for (what, words) in [
        ("nothing is there", [0, 0]),
        ("a host is there that nobody lists", [mark(2 * MARKS - 1), 0]),
        (
            "a host is there that only an operator blocks",
            [mark(MARKS + 1) | mark(1) << 16, 9 << ELSEWHERE_SHIFT],
        ),
        ("a host is there twice", [mark(3) | mark(3) << 32, mark(3)]),
        ("far too many are elsewhere", [mark(0), u64::MAX << ELSEWHERE_SHIFT]),
    ] {
        let rows =
            Mapped::new(kernel.map_again(names::FEED_HOSTS).unwrap()).unwrap().one(77).unwrap();
        rows.words().iter().zip(words).for_each(|(word, wrong)| word.store(wrong, Relaxed));
        kernel.lists = Lists::open(|name| kernel.map_again(name)).unwrap();
        assert_eq!(dropped(&mut kernel, &hosts), truth, "{what}");
        // And the count stays right.
        kernel.lists.replace_feed("", Vec::new()).unwrap();
        kernel
            .lists
            .remove(List::Block, &Network::host(hosts[MARKS + 1].into()), Owner::Manual)
            .unwrap();
        assert_eq!((dropped(&mut kernel, &hosts), elsewhere(&kernel)), (Vec::new(), 0), "{what}");
        feed(&mut kernel, &hosts[..MARKS + 1]);
        kernel
            .lists
            .put(List::Block, Entry::manual(Network::host(hosts[MARKS + 1].into()), NEVER, ""))
            .unwrap();
        assert_eq!(dropped(&mut kernel, &hosts), truth, "{what}");
    }
}
