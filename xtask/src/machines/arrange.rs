//! Setup of a row inside the machine: finds the cards, builds interfaces on top, removes them, and
//! compares the kernel's state before and after the filter.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::interfaces::{Above, Card, Row};
use super::outside::{Outside, Who};
use super::qemu::Machine;
use super::tags::VLAN;

/// A row's interface, ready to be filtered.
#[derive(Debug)]
pub(crate) struct Arranged {
    /// What the filter is put on.
    pub(crate) interface: String,
    /// The cards below it.
    pub(crate) cards: Vec<String>,
    /// The interface that has the address.
    addressed: String,
    /// What was made and has to go.
    made: Vec<String>,
}

/// The kernel's state without the filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    features: String,
    disciplines: String,
    /// Numbers and names.
    programs: Vec<(u64, String)>,
    links: u64,
    pins: String,
}

impl Arranged {
    /// Builds it.
    pub(crate) fn build(
        machine: &mut Machine,
        row: &Row,
        cards: &[Card],
        outside: &Outside,
    ) -> Result<Self> {
        let names = cards.iter().map(|card| name_of(machine, card)).collect::<Result<Vec<_>>>()?;
        let first = names.first().context("a row has a card")?.clone();
        let mut arranged = Self {
            interface: first.clone(),
            cards: names.clone(),
            addressed: first.clone(),
            made: Vec::new(),
        };
        // A queue for each direction that the card has, as drivers set by themselves on larger
        // hosts.
        if cards.iter().any(Card::has_queues) {
            machine.must(&format!("ethtool -L {first} combined 2"))?;
        }
        match row.above {
            Above::Nothing => {}
            Above::Vlan => {
                let name = format!("{first}.{VLAN}");
                machine.must(&format!("ip link set dev {first} up"))?;
                machine
                    .must(&format!("ip link add link {first} name {name} type vlan id {VLAN}"))?;
                arranged.on_top(name, true);
            }
            Above::Bond(mode) => {
                machine.must(&format!("ip link add bond0 type bond mode {mode} miimon 100"))?;
                for name in &names {
                    machine.must(&format!("ip link set dev {name} down"))?;
                    machine.must(&format!("ip link set dev {name} master bond0"))?;
                }
                arranged.on_top("bond0".to_owned(), true);
            }
            Above::Bridge | Above::BridgePort => {
                machine.must("ip link add name br0 type bridge")?;
                machine.must(&format!("ip link set dev {first} master br0"))?;
                machine.must(&format!("ip link set dev {first} up"))?;
                arranged.on_top("br0".to_owned(), row.above == Above::Bridge);
            }
            Above::Macvlan => {
                machine.must(&format!("ip link set dev {first} up"))?;
                machine.must(&format!(
                    "ip link add link {first} name macvlan0 type macvlan mode bridge"
                ))?;
                arranged.on_top("macvlan0".to_owned(), true);
            }
        }
        let addressed = &arranged.addressed;
        if row.mtu != 1500 {
            machine.must(&format!("ip link set dev {addressed} mtu {}", row.mtu))?;
        }
        machine.must(&format!("ip link set dev {addressed} up"))?;
        machine.must(&format!(
            "ip address add {}/24 dev {addressed}",
            outside.address(Who::Machine)
        ))?;
        Ok(arranged)
    }

    /// An interface that was made on top, which has the address, and is filtered or not.
    fn on_top(&mut self, name: String, filtered: bool) {
        if filtered {
            self.interface.clone_from(&name);
        }
        self.addressed.clone_from(&name);
        self.made.push(name);
    }

    /// Takes it down again.
    pub(crate) fn take_down(&self, machine: &mut Machine) -> Result<()> {
        for name in &self.made {
            machine.must(&format!("ip link delete dev {name}"))?;
        }
        for name in &self.cards {
            machine.must(&format!("ip address flush dev {name}"))?;
            machine.must(&format!("ip link set dev {name} down"))?;
        }
        Ok(())
    }

    /// How things are now: offloads, queueing disciplines and filters, programs, links and pins.
    pub(crate) fn state(&self, machine: &mut Machine) -> Result<State> {
        let (mut features, mut disciplines) = (String::new(), String::new());
        let mut interfaces = self.cards.clone();
        interfaces.extend(self.made.iter().cloned());
        for name in &interfaces {
            for line in machine.must(&format!("ethtool -k {name}"))?.lines() {
                features.push_str(&format!("{name}: {}\n", line.trim()));
            }
            for what in ["qdisc show dev", "filter show ingress dev", "filter show egress dev"] {
                // Without a discipline for filters, asking for them is an error, which is an answer
                // too.
                let words = format!("tc {what} {name}");
                let said = machine.run(&words.split(' ').collect::<Vec<_>>())?.stdout;
                disciplines.push_str(&said);
            }
        }
        let held = machine.ask(&serde_json::json!({"do": "programs"}))?;
        let programs = held["programs"].as_array().into_iter().flatten();
        Ok(State {
            features,
            disciplines: without_counters(&disciplines),
            programs: programs
                .map(|program| {
                    let name = program["name"].as_str().unwrap_or_default().to_owned();
                    (program["id"].as_u64().unwrap_or(0), name)
                })
                .collect(),
            links: held["links"].as_u64().unwrap_or(0),
            pins: machine.run(&["ls", "/sys/fs/bpf/sip-xdp"])?.stdout,
        })
    }
}

impl State {
    /// Whether the kernel holds the same programs.
    pub(crate) fn same_programs(&self, other: &Self) -> bool {
        self.programs == other.programs
    }

    /// How many programs are loaded that were not before.
    pub(crate) fn programs_more_than(&self, before: &Self) -> usize {
        self.programs.iter().filter(|program| !before.programs.contains(program)).count()
    }

    /// What is different now, in words; empty if nothing is. So many programs may be lost to the
    /// kernel: loaded, and attached to nothing.
    pub(crate) fn differences(&self, now: &Self, lost: usize) -> Vec<String> {
        let mut found = Vec::new();
        for (was, is) in
            self.features.lines().zip(now.features.lines()).filter(|(was, is)| was != is)
        {
            found.push(format!("offload was {was:?}, is {is:?}"));
        }
        if self.disciplines != now.disciplines {
            found.push(format!(
                "tc showed {:?}, shows {:?}",
                self.disciplines.trim(),
                now.disciplines.trim()
            ));
        }
        let is_gone = self.programs.iter().any(|program| !now.programs.contains(program));
        if is_gone || now.programs_more_than(self) > lost {
            let more: Vec<_> =
                now.programs.iter().filter(|program| !self.programs.contains(program)).collect();
            found.push(format!("other programs are loaded: {more:?}"));
        }
        if self.links != now.links {
            found.push(format!("{} BPF links were there, {} are", self.links, now.links));
        }
        if !now.pins.trim().is_empty() {
            found.push(format!("pins are left: {}", now.pins.trim()));
        }
        found
    }
}

/// Handles change when a discipline is made anew, as taking an interface down and up does; what it
/// is does not.
fn without_counters(text: &str) -> String {
    text.lines()
        .map(|line| line.split(" refcnt").next().unwrap_or(line).trim())
        .collect::<Vec<_>>()
        .join("\n")
}

/// What the machine calls a card.
fn name_of(machine: &mut Machine, card: &Card) -> Result<String> {
    let links: Value = serde_json::from_str(&machine.must("ip -j link")?)?;
    let mut found = links
        .as_array()
        .into_iter()
        .flatten()
        .filter(|link| link["address"] == card.mac().as_str());
    let name = found.next().and_then(|link| link["ifname"].as_str()).map(str::to_owned);
    name.with_context(|| {
        format!("the machine has no card {}: its kernel has no driver for it", card.mac())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_named() {
        let with = |programs: &[u64], features: &str| State {
            features: features.to_owned(),
            disciplines: String::new(),
            programs: programs.iter().map(|id| (*id, "ingress".to_owned())).collect(),
            links: 0,
            pins: String::new(),
        };
        let before = with(&[1], "eth0: rx-gro-hw: on");
        assert!(before.differences(&before, 0).is_empty());
        assert_eq!(before.differences(&with(&[1, 2, 3], "eth0: rx-gro-hw: on"), 1).len(), 1);
        assert!(before.differences(&with(&[1, 2, 3], "eth0: rx-gro-hw: on"), 2).is_empty());
        assert_eq!(
            before.differences(&with(&[2], "eth0: rx-gro-hw: on"), 2).len(),
            1,
            "one that was there is gone"
        );
        let off = before.differences(&with(&[1], "eth0: rx-gro-hw: off"), 2);
        assert_eq!(off, ["offload was \"eth0: rx-gro-hw: on\", is \"eth0: rx-gro-hw: off\""]);
    }
}
