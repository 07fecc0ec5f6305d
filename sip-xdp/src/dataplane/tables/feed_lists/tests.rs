//! Tests of sorted arrays against plain lists.

use super::*;
use crate::net::prefix_set::tests::close;
use proptest::prelude::*;

proptest! {
    #[test]
    fn sorted_arrays_agree_with_plain_lists(
        one in prop::collection::vec(close(), 0..80),
        two in prop::collection::vec(close(), 0..80),
        probe in close(),
    ) {
        let (a, b) = (NetworkSet::new(one.clone()), NetworkSet::new(two.clone()));
        prop_assert_eq!(a.contains(&probe), one.contains(&probe));
        prop_assert_eq!(a.covers(&probe), one.iter().any(|network| network.contains(&probe)));
        let mut inside: Vec<Network> = one.clone();
        inside.retain(|network| probe.contains(network));
        inside.sort_unstable();
        inside.dedup();
        prop_assert_eq!(a.within(&probe).copied().collect::<Vec<_>>(), inside);
        let mut rest: Vec<Network> = one;
        rest.retain(|network| !two.contains(network));
        rest.sort_unstable();
        rest.dedup();
        prop_assert_eq!(a.without(&b), rest);
    }
}
