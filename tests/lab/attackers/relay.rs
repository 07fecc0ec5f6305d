//! An attacker that lets a proxy forward answers that it has made up.

use std::net::SocketAddr;

use anyhow::Result;

use super::{Agent, MINUTE, Try, World};

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
