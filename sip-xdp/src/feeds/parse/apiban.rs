//! A page of APIBAN's answer: addresses, and the ID under which to ask for the next page.

use serde_json::Value;

use super::{Parsed, take};

/// What a page says.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::feeds) enum Page {
    /// Addresses, and the ID of the next page.
    More(Parsed, String),
    /// There are no more.
    End,
}

/// Reads a page that came with this status.
pub(in crate::feeds) fn page(status: u16, body: &[u8]) -> Result<Page, String> {
    let value: Value = serde_json::from_slice(body).map_err(|_| match body.trim_ascii_start() {
        [b'<', ..] => format!("the answer (HTTP {status}) is HTML or XML, not APIBAN's JSON"),
        _ => format!("the answer (HTTP {status}) is not APIBAN's JSON, or cut off"),
    })?;
    let id = match &value["ID"] {
        Value::String(id) => id.clone(),
        Value::Number(id) => id.to_string(),
        _ => String::new(),
    };
    let addresses: Vec<&str> = match &value["ipaddress"] {
        Value::Array(addresses) => addresses.iter().map(|address| address.as_str().unwrap_or_default()).collect(),
        Value::String(text) => vec![text.as_str()],
        _ => return Err(format!("the answer (HTTP {status}) has no addresses")),
    };
    if addresses.iter().any(|text| text.eq_ignore_ascii_case("no new bans")) {
        return Ok(Page::End);
    }
    match status {
        200 => {}
        401 | 403 => return Err("the server refuses the key (unauthorized); see key_file".to_owned()),
        _ => return Err(format!("HTTP {status}")),
    }
    if addresses.is_empty() {
        return Ok(Page::End);
    }
    // It becomes a part of the next address that is asked for.
    if id.is_empty() || id.len() > 64 || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err("the answer has no ID to go on with".to_owned());
    }
    let mut parsed = Parsed::default();
    for (number, address) in (1..).zip(addresses) {
        take(&mut parsed, address, number);
    }
    Ok(Page::More(parsed, id))
}
