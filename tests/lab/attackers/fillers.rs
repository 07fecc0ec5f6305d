//! An attacker that fills tables: an account that registers from ever new places, and names that
//! nobody has, from ever new addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;

use super::guessers::register;
use super::{Agent, Reply, Try, World};

/// Somebody who fills tables.
#[derive(Debug)]
pub enum Filler {
    /// One account registers from place after place.
    Registrations {
        /// The account.
        user: u32,
        /// How many addresses, IPv4 and IPv6 in turn.
        addresses: u32,
        /// How many ports of each.
        ports: u16,
        /// Pause in nanoseconds.
        every: u64,
        /// Registrations so far.
        sent: u64,
    },
    /// Wrong passwords for names that nobody has, from address after address.
    Names {
        /// How many addresses.
        addresses: u32,
        /// Pause in nanoseconds.
        every: u64,
        /// Tries so far.
        sent: u64,
    },
}

impl Filler {
    /// One account that registers from so many addresses and ports of each.
    pub fn registrations(user: u32, addresses: u32, ports: u16, every: u64) -> Self {
        Self::Registrations { user, addresses, ports, every, sent: 0 }
    }

    /// Names that nobody has, from so many addresses.
    pub fn names(addresses: u32, every: u64) -> Self {
        Self::Names { addresses, every, sent: 0 }
    }

    fn address(number: u32) -> IpAddr {
        if number.is_multiple_of(4) {
            let [high, low] = [(number >> 16) as u16, number as u16];
            return Ipv6Addr::new(0x2001, 0xdb8, 0xf111, high, 0, 0, 0, low).into();
        }
        Ipv4Addr::from_bits(0x0b00_0000 + number).into()
    }
}

impl Agent for Filler {
    fn act(&mut self, world: &mut World<'_>) -> Result<Option<u64>> {
        match self {
            Self::Registrations { user, addresses, ports, every, sent } => {
                *sent += 1;
                let number = (*sent % u64::from(*addresses)) as u32;
                let port = 10_000 + (*sent / u64::from(*addresses) % u64::from(*ports)) as u16;
                let from = SocketAddr::new(Self::address(number), port);
                register(from, &user.to_string(), world)?;
                Ok(Some(*every))
            }
            Self::Names { addresses, every, sent } => {
                *sent += 1;
                let number = (*sent % u64::from(*addresses)) as u32;
                let from = SocketAddr::new(Self::address(0x10_0000 + number), 5060);
                let (user, call) = (format!("junk\"{sent}"), world.number());
                let mut request = Try::new(from, "REGISTER", user, call);
                if let Reply::Challenge(nonce) = world.send(&request)? {
                    request.nonce = Some(nonce);
                    world.send(&request)?;
                }
                Ok(Some(*every))
            }
        }
    }
}
