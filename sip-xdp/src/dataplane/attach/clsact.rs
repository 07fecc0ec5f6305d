//! The clsact qdisc of an interface in this process's network namespace, and the filters on it, as
//! far as [`crate::dataplane::attach::tcx`] needs them.
//!
//! Raw netlink messages, of which only the needed attributes are read: filters of other products
//! must be seen even if their kind is unknown, because removing a qdisc removes all of its filters.

use std::ffi::CStr;
use std::io;

use anyhow::{Context, Result, anyhow, bail};
use libc::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, RTM_DELQDISC, RTM_GETQDISC,
    RTM_GETTFILTER, RTM_NEWQDISC, RTM_NEWTFILTER,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// The name of the qdisc.
pub(crate) const CLSACT: &str = "clsact";

/// Handle and parent of a clsact qdisc and of an ingress qdisc, and the parents of their filters
/// (`include/uapi/linux/pkt_sched.h`).
const HANDLE: u32 = 0xffff_0000;
const PARENT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

/// Attributes (`include/uapi/linux/rtnetlink.h` and `pkt_cls.h`).
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;

/// The lengths of `struct nlmsghdr` and `struct tcmsg`.
const HEADER: usize = 16;
const TCMSG: usize = 20;

/// A tc filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Priority; lower ones run first.
    pub(crate) priority: u16,
    /// Handle within its priority.
    pub(crate) handle: u32,
    /// Name of its BPF program, if it has one.
    pub(crate) program: Option<String>,
}

/// The kind of the qdisc at the handle that clsact and ingress share.
pub(crate) fn qdisc(index: u32) -> Result<Option<String>> {
    let all = ask(RTM_GETQDISC, NLM_F_DUMP, index, 0, 0)?;
    let ours =
        all.iter().find(|message| message.is(RTM_NEWQDISC, index) && message.handle() == HANDLE);
    Ok(ours.and_then(|message| message.attribute(TCA_KIND)).map(text))
}

/// The egress filters.
pub(crate) fn egress_filters(index: u32) -> Result<Vec<Filter>> {
    filters(index, EGRESS)
}

/// Removes the clsact qdisc if there is no filter on it.
pub(crate) fn remove_if_empty(index: u32) -> Result<()> {
    let is_there = qdisc(index)?.as_deref() == Some(CLSACT);
    if is_there && filters(index, INGRESS)?.is_empty() && filters(index, EGRESS)?.is_empty() {
        ask(RTM_DELQDISC, NLM_F_ACK, index, HANDLE, PARENT)?;
    }
    Ok(())
}

fn filters(index: u32, parent: u32) -> Result<Vec<Filter>> {
    // Without a qdisc there are no filters.
    if qdisc(index)?.is_none() {
        return Ok(Vec::new());
    }
    let all = ask(RTM_GETTFILTER, NLM_F_DUMP, index, 0, parent)?;
    // Each priority has a message of its own, without a handle.
    let all =
        all.iter().filter(|message| message.is(RTM_NEWTFILTER, index) && message.handle() != 0);
    Ok(all.map(Message::filter).collect())
}

/// A netlink message: its type, and the bytes behind the header.
struct Message {
    kind: u16,
    body: Vec<u8>,
}

impl Message {
    fn is(&self, kind: u16, index: u32) -> bool {
        self.kind == kind && self.body.len() >= TCMSG && self.number(4) == index
    }

    /// A field of `struct tcmsg`: interface at 4, handle at 8, priority in the upper half of the
    /// word at 16.
    fn number(&self, at: usize) -> u32 {
        number(&self.body, at)
    }

    fn handle(&self) -> u32 {
        self.number(8)
    }

    fn attribute(&self, kind: u16) -> Option<&[u8]> {
        attribute(&self.body[TCMSG..], kind)
    }

    fn filter(&self) -> Filter {
        let is_program = self.attribute(TCA_KIND).map(text).is_some_and(|kind| kind == "bpf");
        let name = self
            .attribute(TCA_OPTIONS)
            .and_then(|options| attribute(options, TCA_BPF_NAME))
            .map(text);
        Filter {
            priority: (self.number(16) >> 16) as u16,
            handle: self.handle(),
            program: name.filter(|_| is_program),
        }
    }
}

/// Sends one request and reads all messages of the answer.
fn ask(kind: u16, flags: i32, index: u32, handle: u32, parent: u32) -> Result<Vec<Message>> {
    let what = "the kernel's traffic control cannot be asked";
    let mut socket = Socket::new(NETLINK_ROUTE).context(what)?;
    socket.bind_auto().context(what)?;
    socket.connect(&SocketAddr::new(0, 0)).context(what)?;
    let mut request = Vec::with_capacity(HEADER + TCMSG);
    request.extend(((HEADER + TCMSG) as u32).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(((NLM_F_REQUEST | flags) as u16).to_ne_bytes());
    // Sequence number and port id, both 0: this socket sends one request. Then the address family,
    // `AF_UNSPEC`.
    request.extend([0; 12]);
    for word in [index, handle, parent, 0] {
        request.extend(word.to_ne_bytes());
    }
    socket.send(&request, 0).context(what)?;
    let mut messages = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full().context(what)?;
        let mut rest = datagram.as_slice();
        while rest.len() >= HEADER {
            let length = number(rest, 0) as usize;
            let Some(body) = rest.get(HEADER..length) else {
                bail!("{what}: a message is cut");
            };
            let kind = u16::from_ne_bytes([rest[4], rest[5]]);
            match i32::from(kind) {
                NLMSG_DONE => return Ok(messages),
                NLMSG_ERROR if body.len() < 4 || number(body, 0) == 0 => return Ok(messages),
                NLMSG_ERROR => {
                    let error =
                        io::Error::from_raw_os_error((number(body, 0) as i32).wrapping_neg());
                    return Err(anyhow!(error).context("the kernel's traffic control refuses"));
                }
                _ => messages.push(Message { kind, body: body.to_vec() }),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// The first attribute of a kind.
pub(crate) fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    while bytes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        // The two upper bits are flags: nested, and network byte order.
        let kind = u16::from_ne_bytes([bytes[2], bytes[3]]) & 0x3fff;
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn text(bytes: &[u8]) -> String {
    CStr::from_bytes_until_nul(bytes)
        .map_or_else(|_| String::from_utf8_lossy(bytes), CStr::to_string_lossy)
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_behind_others() {
        let bytes = [6, 0, 1, 0, b'a', 0, 0, 0, 8, 0, 7, 0x80, b'b', b'c', b'd', 0];
        assert_eq!(attribute(&bytes, 1).map(text), Some("a".to_owned()));
        assert_eq!(attribute(&bytes, 7).map(text), Some("bcd".to_owned()));
        assert_eq!(attribute(&bytes, 2), None);
        // Wrong lengths end the list.
        assert_eq!(attribute(&[200, 0, 1, 0, b'a', 0], 1), None);
        assert_eq!(attribute(&[2, 0, 1, 0, b'a', 0], 1), None);
    }

    #[test]
    fn a_filter_is_read() {
        let mut body = vec![0; TCMSG];
        body[4..8].copy_from_slice(&7_u32.to_ne_bytes());
        body[8..12].copy_from_slice(&0x5060_u32.to_ne_bytes());
        body[16..20].copy_from_slice(&(5_u32 << 16).to_ne_bytes());
        body.extend([
            8, 0, 1, 0, b'b', b'p', b'f', 0, 12, 0, 2, 0, 8, 0, 7, 0, b's', b'i', b'p', 0,
        ]);
        let message = Message { kind: RTM_NEWTFILTER, body };
        assert!(
            message.is(RTM_NEWTFILTER, 7)
                && !message.is(RTM_NEWTFILTER, 8)
                && !message.is(RTM_NEWQDISC, 7)
        );
        let filter = Filter { priority: 5, handle: 0x5060, program: Some("sip".to_owned()) };
        assert_eq!(message.filter(), filter);
    }
}
