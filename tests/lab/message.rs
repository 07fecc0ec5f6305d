//! SIP messages, as far as the laboratory's own phones, guessers and carriers need them.

/// Compact names of the headers read here (RFC 3261, section 7.3.3).
const COMPACT: [(&str, &str); 6] = [
    ("v", "Via"),
    ("f", "From"),
    ("t", "To"),
    ("i", "Call-ID"),
    ("m", "Contact"),
    ("l", "Content-Length"),
];

/// A request or a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message<'a> {
    start: &'a str,
    headers: Vec<(&'a str, &'a str)>,
}

impl<'a> Message<'a> {
    /// Parses a datagram; `None` if it is no SIP message.
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(datagram).ok()?;
        let mut lines = text.lines();
        let start = lines.next().filter(|start| start.contains("SIP/2.0"))?;
        let headers = lines
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (long_name(name.trim()), value.trim()))
            .collect();
        Some(Self { start, headers })
    }

    /// The status of a response.
    pub fn status(&self) -> Option<u16> {
        self.start.strip_prefix("SIP/2.0 ")?.get(..3)?.parse().ok()
    }

    /// The method of a request.
    pub fn method(&self) -> Option<&'a str> {
        if self.status().is_some() { None } else { self.start.split(' ').next() }
    }

    /// The first header of a name, given in full, case-insensitive.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.all(name).next()
    }

    /// The number in CSeq.
    pub fn sequence(&self) -> Option<u32> {
        self.header("CSeq")?.split_whitespace().next()?.parse().ok()
    }

    /// A response to a request, with further headers, each with its line end.
    pub fn answer(&self, status: &str, headers: &str) -> Vec<u8> {
        self.answer_with(status, headers, "")
    }

    /// The same with a body.
    pub fn answer_with(&self, status: &str, headers: &str, body: &str) -> Vec<u8> {
        let mut text = format!("SIP/2.0 {status}\r\n");
        for name in ["Via", "Record-Route", "From", "To", "Call-ID", "CSeq"] {
            for value in self.all(name) {
                let needs_tag =
                    name == "To" && !value.contains("tag=") && !status.starts_with("100");
                text += &format!("{name}: {value}{}\r\n", if needs_tag { ";tag=lab" } else { "" });
            }
        }
        format!("{text}{headers}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.headers
            .iter()
            .filter(move |(known, _)| known.eq_ignore_ascii_case(name))
            .map(|&(_, value)| value)
    }
}

fn long_name(name: &str) -> &str {
    COMPACT
        .iter()
        .find(|(compact, _)| compact.eq_ignore_ascii_case(name))
        .map_or(name, |&(_, long)| long)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_answers() {
        let request =
            b"INVITE sip:1000@x SIP/2.0\r\nv: SIP/2.0/UDP a\r\nVia: SIP/2.0/UDP b\r\nto: \
                       <sip:1000@x>\r\n\
                        CALL-ID : 7\r\nCSeq: 3 INVITE\r\n\r\nbody: no header";
        let message = Message::parse(request).unwrap();
        assert_eq!(
            (message.method(), message.status(), message.sequence()),
            (Some("INVITE"), None, Some(3))
        );
        assert_eq!((message.header("Call-ID"), message.header("body")), (Some("7"), None));
        let answer = message.answer("200 OK", "Expires: 60\r\n");
        let answer = Message::parse(&answer).unwrap();
        assert_eq!((answer.status(), answer.method()), (Some(200), None));
        assert_eq!(answer.all("Via").collect::<Vec<_>>(), ["SIP/2.0/UDP a", "SIP/2.0/UDP b"]);
        assert_eq!(
            (answer.header("To"), answer.header("Expires")),
            (Some("<sip:1000@x>;tag=lab"), Some("60"))
        );
        assert_eq!(Message::parse(b"\r\n\r\n"), None);
        assert_eq!(Message::parse(&[0; 20]), None);
    }
}
