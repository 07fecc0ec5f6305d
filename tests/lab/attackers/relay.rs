//! Attackers that forge: whoever sends in the name of others, to have them banned or to spoil what
//! is known of a user; and whoever lets a proxy forward answers that it has made up.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;

use super::{Agent, MINUTE, Reply, Try, World};

/// Who sends nothing in its own name but challenges for its nonces.
const LENDER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 8, 7, 6)), 5060);

/// What a poisoner forges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trick {
    /// Wrong passwords for users that exist, with nonces of somebody else.
    Passwords,
    /// The same for users that nobody has.
    Decoys,
    /// Requests with the User-Agent of a scanner.
    Scanner,
    /// REGISTER requests for one user after the other.
    Enumeration,
    /// INVITEs to one number under many prefixes.
    Calls,
    /// As many requests as it can send.
    Flood,
    /// Requests and made-up rejections, which a proxy forwards.
    Rejections,
}

impl Trick {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Passwords,
        Self::Decoys,
        Self::Scanner,
        Self::Enumeration,
        Self::Calls,
        Self::Flood,
        Self::Rejections,
    ];
}

/// Somebody who forges packets in the name of others.
#[derive(Debug)]
pub struct Poisoner {
    victims: Vec<SocketAddr>,
    users: (u32, u32),
    trick: Trick,
    every: u64,
    sent: u64,
    nonce: Option<(String, u64)>,
}

impl Poisoner {
    /// In the name of these places, for so many users from a number on, each so many nanoseconds.
    pub fn new(victims: Vec<SocketAddr>, users: (u32, u32), trick: Trick, every: u64) -> Self {
        Self { victims, users, trick, every, sent: 0, nonce: None }
    }

    /// A nonce that was given to somebody else.
    fn nonce(&mut self, world: &mut World<'_>) -> Result<Option<String>> {
        if let Some((nonce, since)) = &self.nonce
            && world.now() - since < 2 * MINUTE
        {
            return Ok(Some(nonce.clone()));
        }
        let call = world.number();
        if let Reply::Challenge(nonce) = world.send(&Try::new(LENDER, "REGISTER", "lent", call))? {
            self.nonce = Some((nonce.clone(), world.now()));
            return Ok(Some(nonce));
        }
        Ok(None)
    }
}

impl Agent for Poisoner {
    fn act(&mut self, world: &mut World<'_>) -> Result<Option<u64>> {
        self.sent += 1;
        let victim = self.victims[self.sent as usize % self.victims.len()];
        let user = (self.users.0 + self.sent as u32 % self.users.1).to_string();
        let call = world.number();
        let plain = Try::new(victim, "REGISTER", user, call);
        let request = match self.trick {
            Trick::Passwords | Trick::Rejections => Try { nonce: self.nonce(world)?, ..plain },
            Trick::Decoys => {
                let user = format!("nobody{}", self.sent % 50);
                Try { nonce: self.nonce(world)?, user, ..plain }
            }
            Trick::Scanner => Try {
                agent: Some("friendly-scanner"),
                user: format!("scan{}", self.sent % 100),
                ..plain
            },
            Trick::Enumeration => Try { user: format!("guess{}", self.sent), ..plain },
            Trick::Calls => {
                let number = format!("{:03}972598765432", self.sent % 900);
                Try { method: "INVITE", number, ..plain }
            }
            Trick::Flood => Try { method: "OPTIONS", ..plain },
        };
        if self.trick == Trick::Rejections {
            let serial = world.send_in_vain(&request)?;
            let challenge = "WWW-Authenticate: Digest realm=\"lab.example\", nonce=\"made-up\"\r\n";
            world.forward(LENDER, &request, serial, "401 Unauthorized", challenge)?;
        } else {
            world.send(&request)?;
        }
        Ok(Some(self.every))
    }
}

/// Somebody who has a proxy forward made-up acceptances to its own place, so that this place seems
/// to have a user.
#[derive(Debug)]
pub struct Relay {
    place: SocketAddr,
    user: u32,
}

impl Relay {
    /// Acceptances of a user at a place.
    pub fn acceptances(place: SocketAddr, user: u32) -> Self {
        Self { place, user }
    }
}

impl Agent for Relay {
    fn act(&mut self, world: &mut World<'_>) -> Result<Option<u64>> {
        let call = world.number();
        let mut request = Try::new(self.place, "REGISTER", self.user.to_string(), call);
        // A challenge that is made up as well, and then the password.
        let nonce = format!("{call:032x}");
        let challenge =
            format!("WWW-Authenticate: Digest realm=\"lab.example\", nonce=\"{nonce}\"\r\n");
        let serial = world.send_in_vain(&request)?;
        world.forward(self.place, &request, serial, "401 Unauthorized", &challenge)?;
        request.nonce = Some(nonce);
        let serial = world.send_in_vain(&request)?;
        world.forward(self.place, &request, serial, "200 OK", "Expires: 3600\r\n")?;
        Ok(Some(10 * MINUTE))
    }
}
