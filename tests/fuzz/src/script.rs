//! Scripts of traffic: six bytes per step, so that any bytes are a script and a changed byte
//! changes one property.

/// Bytes per step.
pub(crate) const STEP: usize = 6;

/// The action of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    /// A request without its response.
    Request,
    /// A response without its request.
    Answer,
    /// A request and its response.
    Exchange,
    /// A challenge, and accepted credentials.
    Register,
    /// A challenge, and rejected credentials.
    Guess,
    /// A packet over a limit.
    Limited,
    /// A request of the server.
    PendingRequest,
    /// A response to a request of the server.
    Response,
    /// A request from a phone on a blocked address.
    Conflict,
    /// A packet of an unknown source in a storm.
    Storm,
    /// Time passes, and idle state is removed.
    Tidy,
    /// An operator pardons the source.
    Forget,
    /// The daemon restarts.
    Restart,
    /// The configuration changes.
    Configure,
    /// Time passes.
    Tick,
    /// An event whose message is the rest of the script.
    Raw,
}

impl Deed {
    /// All actions.
    pub(crate) const ALL: [Self; 16] = [
        Self::Request,
        Self::Answer,
        Self::Exchange,
        Self::Register,
        Self::Guess,
        Self::Limited,
        Self::PendingRequest,
        Self::Response,
        Self::Conflict,
        Self::Storm,
        Self::Tidy,
        Self::Forget,
        Self::Restart,
        Self::Configure,
        Self::Tick,
        Self::Raw,
    ];
}

/// One step: the action and its parameters, as indices into the target's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// Action.
    pub(crate) deed: Deed,
    /// Number of repetitions, as a power of two.
    pub(crate) times: u8,
    /// Source: below 8.
    pub(crate) source: u8,
    /// Port: below 4.
    pub(crate) port: u8,
    /// User-Agent: below 4.
    pub(crate) agent: u8,
    /// Whether it is metered by its full address.
    pub(crate) by_address: bool,
    /// User in From, and in To: below 8.
    pub(crate) user: u8,
    /// See [`Step::user`].
    pub(crate) target: u8,
    /// Credentials, and the echoed nonce: below 4.
    pub(crate) credentials: u8,
    /// Method: below 8.
    pub(crate) method: u8,
    /// Status: below 16.
    pub(crate) status: u8,
    /// Whether it has a transaction of its own.
    pub(crate) anew: bool,
    /// Lifetime: below 4.
    pub(crate) expires: u8,
    /// Whether it is in a dialog, and whether it is truncated.
    pub(crate) in_dialog: bool,
    /// See [`Step::in_dialog`].
    pub(crate) cut: bool,
    /// Pause after each repetition, in milliseconds as a power of two; 0 for none.
    pub(crate) pause: u8,
    /// Whether each repetition has another user, port or address.
    pub(crate) users_differ: bool,
    /// See [`Step::users_differ`].
    pub(crate) ports_differ: bool,
    /// See [`Step::users_differ`].
    pub(crate) sources_differ: bool,
}

impl Step {
    /// A step with defaults.
    pub(crate) const fn plain(deed: Deed) -> Self {
        Self {
            deed,
            times: 0,
            source: 0,
            port: 0,
            agent: 0,
            by_address: false,
            user: 0,
            target: 0,
            credentials: 0,
            method: 0,
            status: 0,
            anew: true,
            expires: 0,
            in_dialog: false,
            cut: false,
            pause: 0,
            users_differ: false,
            ports_differ: false,
            sources_differ: false,
        }
    }

    /// From its bytes.
    pub(crate) fn read(bytes: [u8; STEP]) -> Self {
        let [deed, who, whom, what, how, when] = bytes;
        Self {
            deed: Deed::ALL[usize::from(deed & 15)],
            times: deed >> 4 & 7,
            source: who & 7,
            port: who >> 3 & 3,
            agent: who >> 5 & 3,
            by_address: who & 0x80 != 0,
            user: whom & 7,
            target: whom >> 3 & 7,
            credentials: whom >> 6,
            method: what & 7,
            status: what >> 3 & 15,
            anew: what & 0x80 != 0,
            expires: how & 3,
            in_dialog: how & 4 != 0,
            cut: how & 8 != 0,
            pause: when & 31,
            users_differ: when & 0x20 != 0,
            ports_differ: when & 0x40 != 0,
            sources_differ: when & 0x80 != 0,
        }
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> [u8; STEP] {
        let bit = |is: bool, bit: u32| u8::from(is) << bit;
        [
            self.deed as u8 | self.times << 4,
            self.source | self.port << 3 | self.agent << 5 | bit(self.by_address, 7),
            self.user | self.target << 3 | self.credentials << 6,
            self.method | self.status << 3 | bit(self.anew, 7),
            self.expires | bit(self.in_dialog, 2) | bit(self.cut, 3),
            self.pause
                | bit(self.users_differ, 5)
                | bit(self.ports_differ, 6)
                | bit(self.sources_differ, 7),
        ]
    }
}
