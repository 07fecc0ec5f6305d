//! Interfaces under test: the emulator's network cards, and what Linux builds on top of those.

use std::path::Path;

/// A network card of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Card {
    /// Its number, which gives it its addresses and the tap's name.
    pub(crate) number: u8,
    /// The emulator's model, with its options.
    model: &'static str,
    /// Queues for each direction.
    queues: u8,
    /// Whether frames go through a socket instead of a tap, for us to put tags on.
    pub(crate) tagged: bool,
}

impl Card {
    /// Its hardware address.
    pub(crate) fn mac(&self) -> String {
        format!("52:54:00:5e:00:{:02x}", self.number)
    }

    /// The tap outside.
    pub(crate) fn tap(&self) -> String {
        format!("tap{}", self.number)
    }

    /// Whether the tap has several queues.
    pub(crate) fn has_queues(&self) -> bool {
        self.queues > 1
    }

    /// The emulator's side of the outside.
    pub(crate) fn backend(&self, directory: &Path) -> String {
        let (number, directory) = (self.number, directory.display());
        if self.tagged {
            return format!(
                "dgram,id=n{number},local.type=unix,local.path={directory}/card{number},\
                 remote.type=unix,remote.path={directory}/tags{number}"
            );
        }
        let queues =
            if self.has_queues() { format!(",queues={}", self.queues) } else { String::new() };
        format!("tap,id=n{number},ifname={},script=no,downscript=no{queues}", self.tap())
    }

    /// The card itself.
    pub(crate) fn device(&self) -> String {
        // A vector per queue and direction, one for changes of the configuration and one for
        // control.
        let queues = if self.has_queues() {
            format!(",mq=on,vectors={}", 2 * self.queues + 2)
        } else {
            String::new()
        };
        format!("{},netdev=n{},mac={}{queues}", self.model, self.number, self.mac())
    }
}

/// The filtered interface on top of the card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Above {
    /// Nothing: the filter is on the card.
    Nothing,
    /// A VLAN, and the filter is on it.
    Vlan,
    /// A bond of two cards in this mode, and the filter is on it.
    Bond(&'static str),
    /// A bridge with the card as its port, and the filter is on the bridge.
    Bridge,
    /// The same, and the filter is on the card.
    BridgePort,
    /// A macvlan, and the filter is on it.
    Macvlan,
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    /// What it is called.
    pub(crate) name: &'static str,
    /// The driver, for `--driver`.
    pub(crate) driver: &'static str,
    model: &'static str,
    queues: u8,
    pub(crate) above: Above,
    pub(crate) mtu: u16,
    /// The first kernel on which the driver runs the filter itself, and `None` if it never does.
    native_since: Option<(u32, u32)>,
    /// Whether the interface is taken down and up, and its MTU changed, while it is filtered.
    pub(crate) resets: bool,
}

const fn card(
    name: &'static str,
    driver: &'static str,
    model: &'static str,
    native: Option<(u32, u32)>,
) -> Row {
    Row {
        name,
        driver,
        model,
        queues: 1,
        above: Above::Nothing,
        mtu: 1500,
        native_since: native,
        resets: false,
    }
}

const fn above(name: &'static str, above: Above, native: Option<(u32, u32)>) -> Row {
    Row { above, ..card(name, "virtio_net", VIRTIO, native) }
}

const VIRTIO: &str = "virtio-net-pci";

/// XDP came to a driver long before the oldest kernel here.
const ALWAYS: Option<(u32, u32)> = Some((5, 10));

/// All rows.
pub(crate) const ROWS: [Row; 14] = [
    card("virtio_net", "virtio_net", VIRTIO, ALWAYS),
    Row { queues: 4, ..card("virtio_net, 4 queues", "virtio_net", VIRTIO, ALWAYS) },
    // Programs that take packets in several buffers run there since 6.3.
    Row { mtu: 9000, ..card("virtio_net, MTU 9000", "virtio_net", VIRTIO, Some((6, 3))) },
    // The driver accepts the program and never calls it: packets are in buffers that it does not
    // inspect.
    card("virtio_net, mrg_rxbuf=off", "virtio_net", "virtio-net-pci,mrg_rxbuf=off", None),
    // The driver refuses: it cannot switch the host's merging of packets off.
    card(
        "virtio_net, ctrl_guest_offloads=off",
        "virtio_net",
        "virtio-net-pci,ctrl_guest_offloads=off",
        None,
    ),
    card("e1000e", "e1000e", "e1000e", None),
    card("igb", "igb", "igb", ALWAYS),
    Row { resets: true, ..card("vmxnet3", "vmxnet3", "vmxnet3", Some((6, 6))) },
    above("VLAN on virtio_net", Above::Vlan, None),
    above("bond (active-backup)", Above::Bond("active-backup"), ALWAYS),
    // Link aggregation wants to know how fast a link is.
    Row {
        model: "virtio-net-pci,speed=1000,duplex=full",
        ..above("bond (802.3ad)", Above::Bond("802.3ad"), ALWAYS)
    },
    above("bridge", Above::Bridge, None),
    above("bridge port", Above::BridgePort, ALWAYS),
    above("macvlan", Above::Macvlan, None),
];

impl Row {
    /// Whether the driver of this kernel runs the filter itself.
    pub(crate) fn is_native(&self, release: &str) -> bool {
        self.native_since.is_some_and(|since| version_of(release) >= since)
    }

    /// The cards that it needs, numbered from `first` on.
    pub(crate) fn cards(&self, first: u8) -> Vec<Card> {
        let count = if matches!(self.above, Above::Bond(_)) { 2 } else { 1 };
        let card = |number| Card {
            number,
            model: self.model,
            queues: self.queues,
            tagged: self.above == Above::Vlan,
        };
        (first..first + count).map(card).collect()
    }
}

/// The first two numbers of a kernel's release.
pub(crate) fn version_of(release: &str) -> (u32, u32) {
    let mut numbers = release.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Gives each row its cards.
pub(crate) fn deal(rows: &[Row]) -> Vec<(Row, Vec<Card>)> {
    let mut next = 1;
    rows.iter()
        .map(|row| {
            let cards = row.cards(next);
            next += u8::try_from(cards.len()).unwrap_or(u8::MAX);
            (*row, cards)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_learn_it_at_some_release() {
        let [_, _, jumbo, ..] = ROWS;
        assert!(!jumbo.is_native("6.1.0-56-cloud-amd64"));
        assert!(jumbo.is_native("6.12.117+deb13-amd64"));
        assert!(jumbo.is_native("7.3.4+deb13-amd64"));
    }

    #[test]
    fn no_two_rows_share_a_card() {
        let dealt = deal(&ROWS);
        let mut numbers: Vec<_> =
            dealt.iter().flat_map(|(_, cards)| cards.iter().map(|card| card.number)).collect();
        let all = numbers.len();
        numbers.dedup();
        assert_eq!(numbers.len(), all);
        assert_eq!(all, ROWS.len() + 2, "a bond has two cards");
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = ROWS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROWS.len());
    }
}
