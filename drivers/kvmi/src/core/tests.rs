//! Sessions with a host that keeps to the protocol, and with one that does not.

use proptest::prelude::*;

use crate::script::session;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_is_done_no_vcpu_waits_in_the_end(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
        session(&bytes, false);
    }

    #[test]
    fn a_host_that_breaks_the_protocol_is_left(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
        session(&bytes, true);
    }
}
