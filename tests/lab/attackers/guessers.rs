//! Who attacks, and who lives there: guessers of passwords with their places, nonces and paces, an
//! owner whose phone is registered, and a host that is a peer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;

use super::{Agent, HOUR, MILLISECOND, MINUTE, Reply, SECOND, Shape, Try, World};

/// From which address and port each guess comes.
#[derive(Debug, Clone, Copy)]
pub enum Places {
    /// One.
    One(SocketAddr),
    /// One address, so many ports in turn.
    Ports(IpAddr, u16),
    /// An IPv6 /48, the number of whose /64s and of the hosts in each are given, in turn.
    Hopper {
        /// The third group of its address, behind 2001:db8.
        network: u16,
        /// How many /64s.
        subnets: u64,
        /// How many hosts in each.
        hosts: u64,
    },
}

impl Places {
    fn of(&self, number: u64) -> SocketAddr {
        match *self {
            Self::One(place) => place,
            Self::Ports(address, ports) => {
                (address, 20_000 + (number % u64::from(ports)) as u16).into()
            }
            Self::Hopper { network, subnets, hosts } => {
                let (subnet, host) = (number % subnets, number / subnets % hosts + 1);
                let [a, b, c, d] =
                    [host >> 48, host >> 32, host >> 16, host].map(|part| part as u16);
                let address = Ipv6Addr::new(0x2001, 0xdb8, network, subnet as u16, a, b, c, d);
                (address, 5060).into()
            }
        }
    }
}

/// Whose password is tried.
#[derive(Debug, Clone, Copy)]
pub enum Users {
    /// Always this one.
    One(u32),
    /// So many of them, in turn, from this number on.
    Many(u32, u32),
}

impl Users {
    fn of(&self, number: u64) -> String {
        match *self {
            Self::One(user) => user.to_string(),
            Self::Many(first, count) => (u64::from(first) + number % u64::from(count)).to_string(),
        }
    }
}

/// Where the nonces come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonceSource {
    /// From the registrar's challenges to the guesser itself.
    Own,
    /// From those to another address, which does nothing else.
    Borrowed,
    /// From challenges to the guesser itself that lie behind the sample of our answers.
    Hidden,
}

/// How fast it goes, in nanoseconds, and what it does when nothing comes back.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// So many guesses, ...
    pub burst: u64,
    /// ... each so long after the one before it, ...
    pub every: u64,
    /// ... and then so long until the next burst.
    pub rest: u64,
    /// How long it waits when a guess was dropped, before it tries again.
    pub backoff: u64,
}

impl Pace {
    /// One guess after the other.
    pub const fn steady(every: u64) -> Self {
        let backoff = if every > MINUTE { every } else { MINUTE };
        Self { burst: 1, every, rest: every, backoff }
    }

    /// Bursts with pauses.
    pub const fn bursts(burst: u64, every: u64, rest: u64) -> Self {
        Self { burst, every, rest, backoff: MINUTE }
    }

    /// The same with another wait after a drop.
    #[must_use]
    pub const fn back_off(self, backoff: u64) -> Self {
        Self { backoff, ..self }
    }
}

/// An account of the guesser's own.
#[derive(Debug, Clone, Copy)]
pub struct Account {
    /// Its user.
    pub user: u32,
    /// The port that it is registered from, at the address of the first place. If there is none, it
    /// is registered from the place of each guess, before it.
    pub port: Option<u16>,
}

/// A guesser of passwords.
#[derive(Debug)]
pub struct Guesser {
    places: Places,
    users: Users,
    nonces: NonceSource,
    method: &'static str,
    shape: Shape,
    pace: Pace,
    accounts: Vec<Account>,
    answered_at: Option<SocketAddr>,
    is_tcp: bool,
    /// When it begins.
    begins: u64,
    /// When its own account is due.
    renewal: u64,
    guesses: u64,
    call: u64,
    /// The nonce that it holds, since when, and at which place.
    nonce: Option<(String, u64, SocketAddr)>,
}

/// A nonce is used for so long.
const NONCE_AGE: u64 = 240 * SECOND;

impl Guesser {
    /// REGISTER requests as clients write them, with nonces of its own.
    pub fn new(places: Places, users: Users, pace: Pace) -> Self {
        Self {
            places,
            users,
            nonces: NonceSource::Own,
            method: "REGISTER",
            shape: Shape::Plain,
            pace,
            accounts: Vec::new(),
            answered_at: None,
            is_tcp: false,
            begins: 0,
            renewal: 0,
            guesses: 0,
            call: 0,
            nonce: None,
        }
    }

    /// With other nonces.
    #[must_use]
    pub fn nonces(self, nonces: NonceSource) -> Self {
        Self { nonces, ..self }
    }

    /// By another method.
    #[must_use]
    pub fn method(self, method: &'static str) -> Self {
        Self { method, ..self }
    }

    /// In another form.
    #[must_use]
    pub fn shape(self, shape: Shape) -> Self {
        Self { shape, ..self }
    }

    /// With an account of its own, or one more.
    #[must_use]
    pub fn account(mut self, account: Account) -> Self {
        self.accounts.push(account);
        self
    }

    /// With another address of its own, to which the registrar sends all answers.
    #[must_use]
    pub fn answered_at(self, place: SocketAddr) -> Self {
        Self { answered_at: Some(place), ..self }
    }

    /// Over TCP, each place by a connection of its own.
    #[must_use]
    pub fn by_tcp(self) -> Self {
        Self { is_tcp: true, ..self }
    }

    /// Not before then, in nanoseconds since the beginning.
    #[must_use]
    pub fn from_time(self, begins: u64) -> Self {
        Self { begins, ..self }
    }

    /// Takes a nonce for a guess from `from`; none if nobody answers.
    fn take_nonce(
        &mut self,
        from: SocketAddr,
        user: &str,
        world: &mut World<'_>,
    ) -> Result<Option<String>> {
        // A nonce of another port proves nothing there; over TCP the handshake does.
        let is_bound = self.nonces == NonceSource::Own && !self.is_tcp;
        if let Some((nonce, since, at)) = &self.nonce
            && world.now() - since < NONCE_AGE
            && (!is_bound || *at == from)
        {
            return Ok(Some(nonce.clone()));
        }
        let number = world.number();
        let (from, shape) = match self.nonces {
            NonceSource::Own => (from, self.shape),
            NonceSource::Borrowed => (lender(&from, number), Shape::Plain),
            NonceSource::Hidden => (from, Shape::LongNames),
        };
        self.call = number;
        let (method, answered_at, is_tcp) = (self.method, self.answered_at, self.is_tcp);
        let request = Try { shape, answered_at, is_tcp, ..Try::new(from, method, user, number) };
        let Reply::Challenge(nonce) = world.send(&request)? else {
            return Ok(None);
        };
        self.nonce = Some((nonce.clone(), world.now(), from));
        Ok(Some(nonce))
    }

    /// Registers its own accounts that are due. Each takes one challenge.
    fn renew(&mut self, world: &mut World<'_>) -> Result<()> {
        let is_due = world.now() >= self.renewal;
        let here = self.places.of(self.guesses);
        let mut are_in = true;
        for Account { user, port } in &self.accounts {
            let from = match port {
                Some(port) if is_due => SocketAddr::new(self.places.of(0).ip(), *port),
                Some(_) => continue,
                None => here,
            };
            are_in &= register(from, self.is_tcp, &user.to_string(), world)?;
        }
        if is_due {
            self.renewal = world.now() + if are_in { HOUR / 2 } else { 5 * MINUTE };
        }
        Ok(())
    }
}

/// An address that lends its nonces: one of many, so that none is over a limit.
fn lender(to: &SocketAddr, number: u64) -> SocketAddr {
    let address: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::from_bits(0x0a09_0000 | number as u32 & 0xfff).into(),
        SocketAddr::V6(_) => {
            Ipv6Addr::new(0x2001, 0xdb8, 0xeeee, number as u16 & 0xfff, 0, 0, 0, 1).into()
        }
    };
    (address, 5060).into()
}

/// Registers with the right password. Returns whether that succeeded.
fn register(from: SocketAddr, is_tcp: bool, user: &str, world: &mut World<'_>) -> Result<bool> {
    let call = world.number();
    let mut request = Try { is_right: true, is_tcp, ..Try::new(from, "REGISTER", user, call) };
    if let Reply::Challenge(nonce) = world.send(&request)? {
        request.nonce = Some(nonce);
        return Ok(world.send(&request)? == Reply::Accepted);
    }
    Ok(false)
}

impl Agent for Guesser {
    fn act(&mut self, world: &mut World<'_>) -> Result<Option<u64>> {
        if world.now() < self.begins {
            return Ok(Some(self.begins - world.now()));
        }
        self.renew(world)?;
        let (from, user) = (self.places.of(self.guesses), self.users.of(self.guesses));
        let Some(nonce) = self.take_nonce(from, &user, world)? else {
            self.guesses += 1;
            return Ok(Some(self.pace.backoff));
        };
        let call = if self.nonces == NonceSource::Own { self.call } else { world.number() };
        let request = Try {
            nonce: Some(nonce),
            shape: self.shape,
            answered_at: self.answered_at,
            is_tcp: self.is_tcp,
            ..Try::new(from, self.method, user, call)
        };
        let reply = world.send(&request)?;
        self.guesses += 1;
        match reply {
            Reply::Silence => return Ok(Some(self.pace.backoff)),
            // What comes back may be used for the next one; a guesser that hides keeps to its own.
            Reply::Wrong(nonce) | Reply::Challenge(nonce) if self.nonces == NonceSource::Own => {
                self.nonce = Some((nonce, world.now(), from));
            }
            Reply::Challenge(_) => self.nonce = None,
            Reply::Wrong(_) | Reply::Accepted => {}
        }
        let Pace { burst, every, rest, .. } = self.pace;
        Ok(Some(if self.guesses.is_multiple_of(burst) { rest } else { every }))
    }
}

/// How often a client sends a request before it gives up: in 32 s.
const REPETITIONS: u32 = 11;

/// Somebody whose phone is registered, and who renews that twice an hour.
#[derive(Debug)]
pub struct Owner {
    from: SocketAddr,
    user: u32,
    /// The Call-ID and the nonce of the request that is due, if there are any.
    challenge: Option<(u64, Option<String>)>,
    /// How often it was sent in vain.
    repeated: u32,
}

impl Owner {
    /// Of a user, at a place.
    pub fn new(user: u32, from: SocketAddr) -> Self {
        Self { from, user, challenge: None, repeated: 0 }
    }
}

impl Agent for Owner {
    fn act(&mut self, world: &mut World<'_>) -> Result<Option<u64>> {
        let (call, nonce) = self.challenge.take().unwrap_or_else(|| (world.number(), None));
        let request = Try {
            is_right: true,
            nonce: nonce.clone(),
            ..Try::new(self.from, "REGISTER", self.user.to_string(), call)
        };
        Ok(Some(match world.send(&request)? {
            Reply::Accepted => {
                self.repeated = 0;
                HOUR / 2
            }
            Reply::Challenge(nonce) | Reply::Wrong(nonce) => {
                self.challenge = Some((call, Some(nonce)));
                self.repeated = 0;
                MILLISECOND
            }
            // The same request again, at growing intervals, as RFC 3261 says (17.1.2.1); and then
            // from the beginning.
            Reply::Silence => {
                self.repeated = (self.repeated + 1) % REPETITIONS;
                self.challenge = (self.repeated != 0).then_some((call, nonce));
                MINUTE << self.repeated.min(3)
            }
        }))
    }
}

/// A host that the registrar asks each half minute whether it is there.
#[derive(Debug)]
pub struct Peer(pub SocketAddr);

impl Agent for Peer {
    fn act(&mut self, world: &mut World<'_>) -> Result<Option<u64>> {
        world.ask(self.0)?;
        Ok(Some(10 * MINUTE))
    }
}
