//! The agent inside a virtual machine of `cargo xtask machines`: JSON requests of the host, one per
//! line, over a virtio serial port, each with one line of JSON as response. It starts programs,
//! follows their output, serves SIP and a TCP echo, counts packets, and lists the kernel's BPF
//! programs.

mod programs;
mod server;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// Name of the serial port, as configured on the host.
const PORT: &str = "sip-xdp";

/// Poll interval for changes without an event.
const POLL: Duration = Duration::from_millis(20);

/// Directory of the programs' output.
const LOGS: &str = "/tmp";

fn main() -> Result<()> {
    let path = port()?;
    let port = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let mut guest = Guest {
        port: port.try_clone()?,
        server: server::Server::start()?,
        children: HashMap::new(),
    };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    guest.answer(&json!({"release": release.trim(), "uptime": seconds_since_boot()?}))?;
    for line in BufReader::new(port).lines() {
        let request: Value = serde_json::from_str(&line?)?;
        let answer =
            guest.serve(&request).unwrap_or_else(|error| json!({"error": format!("{error:#}")}));
        guest.answer(&answer)?;
    }
    Ok(())
}

/// The device of the serial port, once the kernel has found it.
fn port() -> Result<PathBuf> {
    for _ in 0..500 {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
            if fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == PORT) {
                return Ok(Path::new("/dev").join(entry.file_name()));
            }
        }
        sleep(POLL);
    }
    bail!("there is no virtio serial port named {PORT}")
}

fn seconds_since_boot() -> Result<f64> {
    let text = fs::read_to_string("/proc/uptime")?;
    Ok(text.split(' ').next().context("/proc/uptime is empty")?.parse()?)
}

/// The agent's state.
struct Guest {
    port: File,
    server: server::Server,
    children: HashMap<String, Started>,
}

/// A program in the background.
struct Started {
    child: Child,
    since: Instant,
    log: PathBuf,
}

impl Guest {
    fn answer(&mut self, value: &Value) -> Result<()> {
        self.port.write_all(format!("{value}\n").as_bytes())?;
        Ok(())
    }

    fn serve(&mut self, request: &Value) -> Result<Value> {
        match text(request, "do")? {
            "run" => run(request),
            "start" => self.start(request),
            "signal" => self.signal(request),
            "await" => self.await_text(request),
            "end" => self.end(request),
            "write" => {
                let path = Path::new(text(request, "path")?);
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent)?;
                }
                fs::write(path, text(request, "text")?)?;
                Ok(json!({}))
            }
            "counts" => Ok(self.server.counts()),
            "forget" => {
                self.server.forget();
                Ok(json!({}))
            }
            "echo" => echo(request),
            "programs" => programs::loaded(),
            other => bail!("the agent knows nothing named {other}"),
        }
    }

    /// Starts a program in the background, with its output in a log.
    fn start(&mut self, request: &Value) -> Result<Value> {
        let name = text(request, "name")?.to_owned();
        let log = Path::new(LOGS).join(format!("{name}.log"));
        let file = File::create(&log)?;
        let mut command = command(request)?;
        let child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn()?;
        self.children.insert(name, Started { child, since: Instant::now(), log });
        Ok(json!({}))
    }

    fn started(&mut self, request: &Value) -> Result<&mut Started> {
        let name = text(request, "name")?;
        self.children.get_mut(name).with_context(|| format!("nothing named {name} was started"))
    }

    fn signal(&mut self, request: &Value) -> Result<Value> {
        let signal = format!("-{}", text(request, "signal")?);
        let started = self.started(request)?;
        let status =
            Command::new("/bin/kill").arg(signal).arg(started.child.id().to_string()).status()?;
        Ok(json!({"ok": status.success()}))
    }

    /// Waits until the log contains a text, the program ends, or the timeout.
    fn await_text(&mut self, request: &Value) -> Result<Value> {
        let wanted = text(request, "text")?.to_owned();
        let deadline = Instant::now() + timeout(request);
        let started = self.started(request)?;
        loop {
            let ended = started.child.try_wait()?;
            let log = read(&started.log)?;
            let found = log.contains(&wanted);
            if found || ended.is_some() || Instant::now() >= deadline {
                let seconds = started.since.elapsed().as_secs_f64();
                let ended = ended.is_some();
                return Ok(json!({"found": found, "ended": ended, "seconds": seconds, "log": log}));
            }
            sleep(POLL);
        }
    }

    /// Waits for the end of a program; it is killed on a timeout.
    fn end(&mut self, request: &Value) -> Result<Value> {
        let deadline = Instant::now() + timeout(request);
        let name = text(request, "name")?.to_owned();
        let started = self.started(request)?;
        let mut killed = false;
        let status = loop {
            if let Some(status) = started.child.try_wait()? {
                break status;
            }
            if Instant::now() >= deadline && !killed {
                started.child.kill()?;
                killed = true;
            }
            sleep(POLL);
        };
        let log = read(&started.log)?;
        self.children.remove(&name);
        Ok(json!({"code": status.code(), "killed": killed, "log": log}))
    }
}

fn text<'a>(request: &'a Value, key: &str) -> Result<&'a str> {
    request[key].as_str().with_context(|| format!("the request has no {key}: {request}"))
}

fn timeout(request: &Value) -> Duration {
    Duration::from_secs_f64(request["timeout"].as_f64().unwrap_or(30.0))
}

fn read(path: &Path) -> Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
}

fn command(request: &Value) -> Result<Command> {
    let words: Vec<_> =
        request["argv"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let [program, arguments @ ..] = &words[..] else {
        bail!("the request names no program: {request}")
    };
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}

/// Runs a program to its end, within a timeout.
fn run(request: &Value) -> Result<Value> {
    let deadline = Instant::now() + timeout(request);
    let paths = [Path::new(LOGS).join(".stdout"), Path::new(LOGS).join(".stderr")];
    let mut command = command(request)?;
    command.stdin(Stdio::null()).stdout(File::create(&paths[0])?).stderr(File::create(&paths[1])?);
    let since = Instant::now();
    let mut child = command.spawn()?;
    let mut killed = false;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline && !killed {
            child.kill()?;
            killed = true;
        }
        sleep(Duration::from_millis(2));
    };
    Ok(json!({
        "code": status.code(),
        "killed": killed,
        "seconds": since.elapsed().as_secs_f64(),
        "stdout": read(&paths[0])?,
        "stderr": read(&paths[1])?,
    }))
}

/// Connects to an outside echo, and sends and receives the requested number of bytes.
fn echo(request: &Value) -> Result<Value> {
    let address: SocketAddr = text(request, "address")?.parse()?;
    let size = usize::try_from(request["bytes"].as_u64().unwrap_or(0))?;
    let mut stream = TcpStream::connect_timeout(&address, timeout(request))?;
    stream.set_read_timeout(Some(timeout(request)))?;
    let sent: Vec<u8> = (0..=u8::MAX).cycle().take(size).collect();
    let mut writer = stream.try_clone()?;
    let to_send = sent.clone();
    let writing = std::thread::spawn(move || writer.write_all(&to_send));
    let mut received = vec![0; size];
    stream.read_exact(&mut received)?;
    if !writing.join().is_ok_and(|result| result.is_ok()) {
        bail!("not all bytes could be sent");
    }
    Ok(json!({"same": received == sent}))
}
