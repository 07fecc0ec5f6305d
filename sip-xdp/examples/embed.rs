//! The filter as a library: attaches to an interface, blocks a network, prints events, detaches.
//!
//! `cargo build --example embed && sudo target/debug/examples/embed eth0 192.0.2.0/24`; Ctrl-C ends
//! it.

use std::time::Duration;

use anyhow::{Context, Result};
use sip_xdp::config::Config;
use sip_xdp::embed::{Event, Filter};
use sip_xdp::net::network::Network;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

/// Duration of a block.
const BAN: Duration = Duration::from_secs(600);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let interface = arguments.next().context("which interface? embed INTERFACE [NETWORK]")?;
    let blocked: Option<Network> = arguments.next().map(|network| network.parse()).transpose()?;

    let mut filter = Filter::attach(&Config::default(), &interface).await?;
    if let Some(network) = blocked {
        filter.block(network, None, "named on the command line")?;
    }
    println!("filtering {interface} ({})", filter.mode());

    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut look = interval(Duration::from_millis(50));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut second = interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = second.tick() => filter.tick(),
            _ = look.tick() => {
                while let Some(event) = filter.next_event() {
                    match event {
                        Event::Limited { address, port } => println!("{address} port {port} is \
                            over a limit"),
                        Event::Attack { address, finding } => {
                            let reason = &finding.reason;
                            println!("{address} attacks, blocked for ten minutes: {reason}");
                            filter.block(Network::host(address), Some(BAN), &finding.reason)?;
                        }
                    }
                }
            }
        }
    }

    if let Some(network) = blocked {
        println!("{} packets of {network} were dropped", filter.hits(network));
    }
    let packets = filter.packets()?;
    println!("{} packets passed, {} were dropped", packets.passed, packets.dropped);
    filter.detach();
    println!("{interface} is not filtered any more");
    Ok(())
}
