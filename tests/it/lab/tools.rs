//! The laboratory itself, without the filter: its tools work and its captures lose nothing.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use sip_xdp_tests::topology::{ATTACKER, OUTSIDE, WAN};
use sip_xdp_tests::{Attacker, Capture, Lab, Phone, Registrar};

#[test]
fn a_phone_registers_and_attacks_arrive() -> Result<()> {
    let lab = Lab::new()?;
    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let phone = Phone::new(&lab.phone, lab.directory());
    let registration = phone.register()?;
    println!("phone: {registration:?}");
    assert_eq!(registration.status, 200);

    let refused = Phone::new(&lab.phone, lab.directory()).user("alice", "wrong").register()?;
    println!("phone with a wrong password: {refused:?}");
    assert_eq!(refused.status, 401);

    let attacker = Attacker::new(&lab.attacker, lab.directory());
    let ping = attacker.ping()?;
    println!("sipsak: {:?}", String::from_utf8_lossy(&ping.stdout).lines().next());
    assert!(ping.status.success());

    // Its source port is 5060 too: only the address tells requests from responses.
    let expression = format!("udp and src host {ATTACKER} and dst port 5060");
    let sent = Capture::start(&lab.attacker, OUTSIDE, &expression, lab.directory())?;
    let seen = Capture::start(&lab.pbx, WAN, &expression, lab.directory())?;
    let before = registrar.received_from(ATTACKER);
    let mut crack = attacker.crack("101")?;
    sleep(Duration::from_secs(3));
    crack.stop(nix::sys::signal::Signal::SIGTERM)?;
    let (sent, seen) = (sent.stop()?.len(), seen.stop()?.len());
    let received = registrar.received_from(ATTACKER) - before;
    println!("svcrack in 3 s: sent {sent}, seen {seen}, received {received}");
    assert!(sent > 200, "{}", crack.tail());
    assert_eq!((seen, received), (sent, sent));

    for method in ["REGISTER", "OPTIONS", "INVITE"] {
        let before = registrar.received_from(ATTACKER);
        let mut war = attacker.enumerate(method)?;
        sleep(Duration::from_secs(2));
        war.stop(nix::sys::signal::Signal::SIGTERM)?;
        let received = registrar.received_from(ATTACKER) - before;
        println!("svwar {method} in 2 s: received {received}");
        assert!(received > 100, "{}", war.tail());
    }
    Ok(())
}
