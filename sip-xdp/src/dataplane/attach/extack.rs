//! The reason for a driver's refusal. A failed link returns only an errno; the extended
//! acknowledgement of kernel or driver comes only through netlink. So the attachment is retried
//! there.

use std::os::fd::{AsFd, AsRawFd};

use aya::programs::Xdp;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::clsact::attribute;

/// Attributes of `IFLA_XDP` (`include/uapi/linux/if_link.h`).
const IFLA_XDP: u16 = 43;
const IFLA_XDP_FD: u16 = 1;
const IFLA_XDP_FLAGS: u16 = 3;
const FLAG_IF_NOEXIST: u32 = 1;
const FLAG_DRIVER: u32 = 4;

/// `NLA_F_NESTED`, `NLM_F_CAPPED`, `NLM_F_ACK_TLVS`, `NLMSGERR_ATTR_MSG`
/// (`include/uapi/linux/netlink.h`).
const NESTED: u16 = 1 << 15;
const CAPPED: u16 = 0x100;
const ACK_TLVS: u16 = 0x200;
const ATTR_MSG: u16 = 1;

/// The lengths of `struct nlmsghdr` and `struct ifinfomsg`.
const HEADER: usize = 16;
const IFINFOMSG: usize = 16;

/// Attaches a program in native mode by netlink, on an interface without one, and returns the
/// extended acknowledgement of the refusal. `None` if there is none, or if it succeeds after all,
/// which is undone.
pub(crate) fn refusal(program: &Xdp, index: u32) -> Option<String> {
    let program = program.fd().ok()?.as_fd().as_raw_fd();
    let mut socket = Socket::new(NETLINK_ROUTE).ok()?;
    socket.bind_auto().ok()?;
    socket.connect(&SocketAddr::new(0, 0)).ok()?;
    socket.set_ext_ack(true).ok()?;
    // If this fails, the whole request precedes the message, which is parsed as well.
    let _ = socket.set_cap_ack(true);
    let answer = ask(&socket, &set_program(index, program, FLAG_IF_NOEXIST | FLAG_DRIVER))?;
    if answer.is_error {
        return answer.text;
    }
    if let Some(kept) =
        ask(&socket, &set_program(index, -1, FLAG_DRIVER)).filter(|answer| answer.is_error)
    {
        log::error!(
            "interface {index}: a program that was attached to try it stays: {:?}",
            kept.text
        );
    }
    None
}

/// The acknowledgement.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    is_error: bool,
    text: Option<String>,
}

fn ask(socket: &Socket, request: &[u8]) -> Option<Answer> {
    socket.send(request, 0).ok()?;
    let (message, _) = socket.recv_from_full().ok()?;
    read(&message)
}

/// `RTM_SETLINK` with `IFLA_XDP`.
fn set_program(index: u32, program: i32, flags: u32) -> Vec<u8> {
    const LENGTH: usize = HEADER + IFINFOMSG + 4 + 8 + 8;
    let mut message = Vec::with_capacity(LENGTH);
    message.extend((LENGTH as u32).to_ne_bytes());
    message.extend(libc::RTM_SETLINK.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    // Sequence number and port id; of `ifinfomsg` only the index is set.
    message.extend([0; 8 + 4]);
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(20_u16.to_ne_bytes());
    message.extend((IFLA_XDP | NESTED).to_ne_bytes());
    for (attribute, value) in
        [(IFLA_XDP_FD, program.to_ne_bytes()), (IFLA_XDP_FLAGS, flags.to_ne_bytes())]
    {
        message.extend(8_u16.to_ne_bytes());
        message.extend(attribute.to_ne_bytes());
        message.extend(value);
    }
    message
}

/// Parses an acknowledgement: errno, the request or only its header, attributes.
fn read(message: &[u8]) -> Option<Answer> {
    let word = |at: usize| Some(u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_ne_bytes(message.get(at..at + 2)?.try_into().ok()?));
    if half(4)? != libc::NLMSG_ERROR as u16 {
        return None;
    }
    let (flags, errno) = (half(6)?, word(HEADER)?);
    let text = (flags & ACK_TLVS != 0).then(|| {
        let request = HEADER + 4;
        let length = if flags & CAPPED != 0 {
            HEADER
        } else {
            (word(request)? as usize).next_multiple_of(4)
        };
        let text = attribute(message.get(request + length..)?, ATTR_MSG)?;
        let text = String::from_utf8_lossy(text).trim_end_matches('\0').trim().to_owned();
        Some(text).filter(|text| !text.is_empty())
    });
    Some(Answer { is_error: errno != 0, text: text.flatten() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An acknowledgement as Linux sends it.
    fn acknowledgement(errno: i32, request: &[u8], flags: u16, text: &[u8]) -> Vec<u8> {
        let mut message = vec![0; 4];
        message.extend((libc::NLMSG_ERROR as u16).to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 8]);
        message.extend(errno.to_ne_bytes());
        message.extend(request);
        if !text.is_empty() {
            message.extend((4 + text.len() as u16).to_ne_bytes());
            message.extend(ATTR_MSG.to_ne_bytes());
            message.extend(text);
            message.resize(message.len().next_multiple_of(4), 0);
        }
        message
    }

    #[test]
    fn the_words_of_the_kernel_are_found() {
        let request = set_program(7, 3, FLAG_DRIVER);
        assert_eq!(request.len(), 52);
        let said = Some("veth: Peer MTU is too large to set XDP".to_owned());
        let text = b"veth: Peer MTU is too large to set XDP\0";
        let capped = acknowledgement(-libc::ERANGE, &request[..HEADER], CAPPED | ACK_TLVS, text);
        assert_eq!(read(&capped), Some(Answer { is_error: true, text: said.clone() }));
        let whole = acknowledgement(-libc::ERANGE, &request, ACK_TLVS, text);
        assert_eq!(read(&whole), Some(Answer { is_error: true, text: said }));
        let silent = acknowledgement(-libc::EINVAL, &request[..HEADER], CAPPED, b"");
        assert_eq!(read(&silent), Some(Answer { is_error: true, text: None }));
        assert_eq!(
            read(&acknowledgement(0, &request[..HEADER], CAPPED, b"")),
            Some(Answer { is_error: false, text: None })
        );
        for length in 0..capped.len() {
            let _ = read(&capped[..length]);
        }
    }
}
