//! SIP over TLS and WebSocket, as a phone or an attacker speaks it: one request, one answer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use crate::process::succeed;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The longest answer, in bytes.
const LONGEST: usize = 65_536;

/// What carries SIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// TLS.
    Tls,
    /// WebSocket.
    Ws,
    /// WebSocket over TLS.
    Wss,
}

impl Carrier {
    /// Its name in a Via.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tls => "TLS",
            Self::Ws => "WS",
            Self::Wss => "WSS",
        }
    }

    /// The registrar's port, where there is a certificate or none.
    pub const fn port(self) -> u16 {
        match self {
            Self::Ws => 5_060,
            Self::Tls | Self::Wss => 5_061,
        }
    }
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// A connection to a SIP server.
pub struct Encrypted {
    stream: Box<dyn Stream>,
    is_websocket: bool,
}

impl Encrypted {
    /// Connects from the namespace of this thread. Any certificate is good.
    pub fn open(carrier: Carrier, to: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        let stream: Box<dyn Stream> = if carrier == Carrier::Ws {
            Box::new(stream)
        } else {
            let config = ClientConfig::builder()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate))
                .with_no_client_auth();
            let name = ServerName::from(to.ip());
            Box::new(StreamOwned::new(ClientConnection::new(Arc::new(config), name)?, stream))
        };
        let mut connection = Self { stream, is_websocket: carrier != Carrier::Tls };
        if connection.is_websocket {
            connection.upgrade(to)?;
        }
        Ok(connection)
    }

    /// RFC 7118, section 4.
    fn upgrade(&mut self, to: SocketAddr) -> Result<()> {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {to}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Protocol: sip\r\n\r\n"
        );
        self.stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") && answer.len() < LONGEST {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).context("no answer to the handshake")?;
            answer.push(byte[0]);
        }
        if !answer.starts_with(b"HTTP/1.1 101") {
            bail!("no WebSocket: {}", String::from_utf8_lossy(&answer));
        }
        Ok(())
    }

    /// Sends a request and waits for its answer.
    pub fn ask(&mut self, request: &[u8]) -> Result<Vec<u8>> {
        if !self.is_websocket {
            self.stream.write_all(request)?;
            self.stream.flush()?;
            let mut answer = vec![0; LONGEST];
            let length = self.stream.read(&mut answer)?;
            answer.truncate(length);
            return if length == 0 { bail!("closed") } else { Ok(answer) };
        }
        // A final text frame, masked with zeros (RFC 6455, section 5.2).
        let mut frame = vec![0x81, 0x80 | 126];
        frame.extend(u16::try_from(request.len())?.to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(request);
        self.stream.write_all(&frame)?;
        self.stream.flush()?;
        loop {
            let mut head = [0; 2];
            self.stream.read_exact(&mut head)?;
            let length = match head[1] & 0x7f {
                126 => {
                    let mut length = [0; 2];
                    self.stream.read_exact(&mut length)?;
                    usize::from(u16::from_be_bytes(length))
                }
                127 => bail!("a frame of 64 KiB or more"),
                length => usize::from(length),
            };
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload)?;
            match head[0] & 0x0f {
                1 | 2 => return Ok(payload),
                8 => bail!("closed"),
                _ => {}
            }
        }
    }
}

#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A key and a certificate that nobody has signed, in files of a directory.
#[derive(Debug)]
pub struct Certificate {
    /// The key.
    pub key: PathBuf,
    /// The certificate.
    pub certificate: PathBuf,
}

impl Certificate {
    /// Makes them.
    pub fn make(directory: &Path) -> Result<Self> {
        let (key, certificate) = (directory.join("server.key"), directory.join("server.pem"));
        succeed(
            Command::new("openssl")
                .args(["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=pbx.example"])
                .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout"])
                .arg(&key)
                .arg("-out")
                .arg(&certificate),
        )?;
        Ok(Self { key, certificate })
    }
}
