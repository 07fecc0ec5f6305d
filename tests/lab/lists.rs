//! A server of feeds, which can also misbehave like real servers.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::namespace::Namespace;

/// The server's reaction to a request.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Sends these bytes, head and body, and closes.
    Bytes(Vec<u8>),
    /// Sends these bytes, one per interval.
    Dripping(Vec<u8>, Duration),
    /// Sends a head, then this repeatedly without end.
    Endless(Vec<u8>),
}

impl Reply {
    /// A response with status, further header lines, and a body with its length.
    pub fn new(status: &str, headers: &[&str], body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let head = format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        Self::Bytes([head.as_bytes(), body].concat())
    }

    /// A list as plain text.
    pub fn list(body: impl AsRef<[u8]>) -> Self {
        Self::new("200 OK", &["Content-Type: text/plain"], body)
    }
}

type Answers = Box<dyn FnMut(&str) -> Reply + Send>;

struct Shared {
    answers: Mutex<Answers>,
    requests: Mutex<Vec<String>>,
    is_over: AtomicBool,
}

/// A server on a free port. Dropping it ends it.
pub struct ListServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl ListServer {
    /// Starts on the loopback interface, with one reply to every request.
    pub fn start(reply: Reply) -> Result<Self> {
        Self::serve(TcpListener::bind("127.0.0.1:0").context("no port for a server")?, reply)
    }

    /// Starts inside a namespace.
    pub fn start_in(namespace: &Namespace, address: SocketAddr, reply: Reply) -> Result<Self> {
        let bind =
            || TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"));
        Self::serve(namespace.enter(bind)?, reply)
    }

    fn serve(listener: TcpListener, reply: Reply) -> Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            answers: Mutex::new(Box::new(move |_| reply.clone())),
            requests: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            while !serving.is_over.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let shared = Arc::clone(&serving);
                        // A disconnected client is no error.
                        thread::spawn(move || drop(shared.answer(stream)));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Ok(Self { address, shared })
    }

    /// Its URL, with a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// Sets the reply.
    pub fn reply(&self, reply: Reply) {
        self.answer_with(move |_| reply.clone());
    }

    /// Replies to each request, given as its head, with the closure's result.
    pub fn answer_with(&self, answers: impl FnMut(&str) -> Reply + Send + 'static) {
        *lock(&self.shared.answers) = Box::new(answers);
    }

    /// All requests so far: heads, with bodies if any.
    pub fn requests(&self) -> Vec<String> {
        lock(&self.shared.requests).clone()
    }
}

impl Drop for ListServer {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn answer(&self, mut stream: TcpStream) -> Result<()> {
        stream.set_nonblocking(false)?;
        let (mut head, mut buffer) = (Vec::new(), [0; 4_096]);
        // An unread body would make the kernel reset the connection under the reply.
        while !is_whole(&head) {
            let read = stream.read(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            head.extend_from_slice(&buffer[..read]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        lock(&self.requests).push(head.clone());
        let reply = (lock(&self.answers))(&head);
        match reply {
            Reply::Bytes(bytes) => stream.write_all(&bytes)?,
            Reply::Dripping(bytes, pause) => {
                for byte in bytes {
                    stream.write_all(&[byte])?;
                    thread::sleep(pause);
                }
            }
            Reply::Endless(chunk) => {
                stream.write_all(
                    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/plain\r\n\r\n",
                )?;
                while !self.is_over.load(Ordering::Relaxed) {
                    stream.write_all(&chunk)?;
                }
            }
        }
        Ok(())
    }
}

/// Whether a request is complete by its content length.
fn is_whole(request: &[u8]) -> bool {
    let Some(end) = request.windows(4).position(|end| end == b"\r\n\r\n") else {
        return false;
    };
    let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    request.len() >= end + 4 + length.unwrap_or(0)
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
