//! Negotiated features of a virtio network device that prevent native mode: some hosts merge
//! packets for the device in ways that the driver can neither switch off nor show to a program.

use std::fs;

/// Feature bits (`include/uapi/linux/virtio_net.h`).
const GUEST_CSUM: usize = 1;
const CTRL_GUEST_OFFLOADS: usize = 2;
const GUEST_TSO4: usize = 7;
const GUEST_TSO6: usize = 8;
const GUEST_ECN: usize = 9;
const GUEST_UFO: usize = 10;
const MRG_RXBUF: usize = 15;
const GUEST_USO4: usize = 54;
const GUEST_USO6: usize = 55;

/// Offloads by which the device delivers several packets merged into one.
const MERGING: [usize; 6] = [GUEST_TSO4, GUEST_TSO6, GUEST_ECN, GUEST_UFO, GUEST_USO4, GUEST_USO6];

/// The reason why the driver does not run programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// The driver refuses programs: the device merges packets or computes checksums, and the driver
    /// cannot switch that off (`virtnet_xdp_set` in `drivers/net/virtio_net.c`).
    Refuses,
    /// The driver accepts programs and never calls them: merged packets come in chains of pages,
    /// which `receive_big` delivers without running the program.
    NeverCalls,
}

impl Obstacle {
    /// The obstacle on an interface; `None` also if it is not a virtio device.
    pub(crate) fn of(interface: &str) -> Option<Self> {
        // The negotiated bits, of which sysfs shows one character each.
        Self::read(&fs::read_to_string(format!("/sys/class/net/{interface}/device/features")).ok()?)
    }

    /// The obstacle by feature bits in the format of sysfs, bit 0 first.
    fn read(features: &str) -> Option<Self> {
        let has = |bit: &usize| features.as_bytes().get(*bit) == Some(&b'1');
        let merges = MERGING.iter().any(has);
        if !has(&CTRL_GUEST_OFFLOADS) && (merges || has(&GUEST_CSUM)) {
            return Some(Self::Refuses);
        }
        (merges && !has(&MRG_RXBUF)).then_some(Self::NeverCalls)
    }

    /// Description, in the driver's words where it has any.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Refuses => {
                "virtio_net: Can't set XDP while host is implementing GRO_HW/CSUM, disable \
                 GRO_HW/CSUM first"
            }
            Self::NeverCalls => {
                "virtio_net takes the program and never calls it without mergeable buffers"
            }
        }
    }

    /// Remedy.
    pub(crate) fn remedy(self) -> &'static str {
        match self {
            Self::Refuses => {
                "the host merges packets and its virtio device cannot be told to stop: on the \
                 host take guest \
                 offloads away (libvirt: `<driver><guest tso4='off' tso6='off' ecn='off' \
                 ufo='off' csum='off'/></driver>`; \
                 qemu: guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,guest_csum=off) \
                 or have the device \
                 offer control of them (ctrl_guest_offloads=on), and restart the guest"
            }
            Self::NeverCalls => {
                "on the host give the device mergeable buffers (libvirt: `<driver><host \
                 mrg_rxbuf='on'/></driver>`; \
                 qemu: mrg_rxbuf=on), and restart the guest"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feature bits in the format of sysfs.
    fn bits(set: &[usize]) -> String {
        (0..64).map(|bit| if set.contains(&bit) { '1' } else { '0' }).chain(['\n']).collect()
    }

    #[test]
    fn what_stands_in_the_way_of_a_program() {
        for (set, expected) in [
            (&[GUEST_CSUM, CTRL_GUEST_OFFLOADS, GUEST_TSO4, GUEST_TSO6, MRG_RXBUF][..], None),
            (&[GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, MRG_RXBUF], Some(Obstacle::Refuses)),
            (&[GUEST_CSUM, MRG_RXBUF], Some(Obstacle::Refuses)),
            (&[GUEST_USO6, MRG_RXBUF], Some(Obstacle::Refuses)),
            (&[GUEST_CSUM, CTRL_GUEST_OFFLOADS, GUEST_TSO4], Some(Obstacle::NeverCalls)),
            // One buffer per packet.
            (&[GUEST_CSUM, CTRL_GUEST_OFFLOADS], None),
            (&[], None),
        ] {
            assert_eq!(Obstacle::read(&bits(set)), expected, "{set:?}");
        }
        assert_eq!(Obstacle::read(""), None);
        assert_eq!(Obstacle::of("lo"), None);
    }
}
