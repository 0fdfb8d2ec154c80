//! A server that answers on a schedule that is known to the microsecond, or badly. A thread for each connection, since the timers
//! of an asynchronous runtime are no more exact than what is to be measured.

use std::io::{self, BufRead, BufReader, IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::cmsg_space;
use nix::sys::socket::{Backlog, ControlMessageOwned, MsgFlags, listen, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use serde_json::{Value, json};

/// What the server does.
#[derive(Clone, Debug)]
pub(crate) enum Behaviour {
    /// Tokens at their times.
    Steady,
    /// The same, but from one time to another after the first request nothing is sent.
    Stall(Duration, Duration),
    /// Tokens take longer by a factor of the model's name: `slow-1.5`.
    ByModel,
    /// Bytes as they are, then the end of the connection.
    Raw(Vec<u8>),
    /// The head of a stream, then bytes as they are, then the end of the connection.
    Stream(Vec<u8>),
    /// The head of a stream, then the same bytes for ever.
    Endless(Vec<u8>),
    /// A status and a body that repeats the prompt.
    Refuse(u16),
    /// One token, and then nothing.
    Hang,
    /// Nothing at all.
    Never,
    /// A good answer, and the end of a connection that said that it would stay.
    Forgetful,
    /// A good answer whose stream does not end.
    Unended,
}

/// When tokens come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub ttft: Duration,
    pub itl: Duration,
}

/// A server on loopback, until it is dropped.
pub(crate) struct Stub {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    behaviour: Behaviour,
    pace: Pace,
    key: Option<String>,
    stop: AtomicBool,
    first: OnceLock<Instant>,
    connections: AtomicUsize,
    requests: AtomicUsize,
    /// Requests that said that their connection ends with them.
    said_close: AtomicUsize,
    /// Of each streamed answer, in the order of their ends, when each token was written, in ms since its request arrived.
    written: Mutex<Vec<Vec<f64>>>,
}

/// Tokens that the stub counts in a prompt: five for four words, and some of a template.
pub(crate) fn tokens_of(words: usize) -> usize {
    words * 5 / 4 + 8
}

const STACK_BYTES: usize = 128 << 10;

impl Stub {
    pub(crate) fn start(behaviour: Behaviour, pace: Pace) -> Self {
        Self::with(behaviour, pace, None, "127.0.0.1:0")
    }

    pub(crate) fn with(behaviour: Behaviour, pace: Pace, key: Option<&str>, address: &str) -> Self {
        let listener = TcpListener::bind(address).expect("an address of this machine");
        // The standard library lets 128 wait to be accepted: of a thousand at once some would begin seconds later.
        listen(&listener, Backlog::MAXALLOWABLE).expect("a listener");
        let address = listener.local_addr().expect("a bound address");
        let shared = Arc::new(Shared {
            behaviour,
            pace,
            key: key.map(str::to_owned),
            stop: AtomicBool::new(false),
            first: OnceLock::new(),
            connections: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            said_close: AtomicUsize::new(0),
            written: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        thread::Builder::new()
            .spawn(move || accept(&listener, &accepting))
            .expect("a thread");
        Self { address, shared }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// What became of its schedule: of each streamed answer, in the order of their ends, when each token was written, in ms
    /// since its request arrived. A machine wakes nobody at the very moment.
    pub(crate) fn written(&self) -> Vec<Vec<f64>> {
        self.shared.written.lock().expect("nobody panics with it").clone()
    }

    /// Requests so far, but for those that ask which models there are and which build it is.
    pub(crate) fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Those of them that said that their connection ends with them.
    pub(crate) fn said_close(&self) -> usize {
        self.shared.said_close.load(Ordering::SeqCst)
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // So that it looks.
        let _ = TcpStream::connect(self.address);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let (Ok(stream), shared) = (stream, Arc::clone(shared)) else {
            continue;
        };
        shared.connections.fetch_add(1, Ordering::SeqCst);
        let serving = thread::Builder::new().stack_size(STACK_BYTES);
        // A client that goes away is no error of the server.
        let started = serving.spawn(move || serve(stream, &shared).unwrap_or(()));
        started.expect("a thread for each connection");
    }
}

struct Request {
    path: String,
    authorized: bool,
    /// Whether it says that its connection ends with it; this server leaves that to the client.
    says_close: bool,
    body: Value,
    arrived: Instant,
}

fn serve(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(Timed::new(stream.try_clone()?));
    let mut stream = stream;
    while let Some(request) = read(&mut reader, shared)? {
        if request.path.ends_with("/models") {
            document(
                &mut stream,
                200,
                &json!({ "data": [{ "id": "stub", "sha256": "0123", "owned_by": "tests" }] }),
            )?;
            continue;
        }
        if request.path == "/version" {
            document(&mut stream, 200, &json!({ "version": "1.2", "build": "abcd" }))?;
            continue;
        }
        shared.requests.fetch_add(1, Ordering::SeqCst);
        shared
            .said_close
            .fetch_add(usize::from(request.says_close), Ordering::SeqCst);
        shared.first.get_or_init(|| request.arrived);
        if !request.authorized {
            document(
                &mut stream,
                401,
                &json!({ "error": { "message": "no", "code": "invalid_api_key" } }),
            )?;
            continue;
        }
        if !answer(&mut stream, shared, &request)? {
            return Ok(());
        }
    }
    Ok(())
}

/// What a connection brings, and when the last of it reached the socket, by the kernel's clock: a schedule that began when a thread came to
/// read would be off by as much as the thread was late. Where the kernel does not tell, it is that time. The client has code like this;
/// shared with it, what is wrong there would be wrong here as well, and nobody would see it.
struct Timed {
    stream: TcpStream,
    last: Instant,
}

impl Timed {
    fn new(stream: TcpStream) -> Self {
        let _ = setsockopt(&stream, sockopt::ReceiveTimestampns, &true);
        let last = Instant::now();
        Self { stream, last }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut parts = [IoSliceMut::new(buffer)];
        let mut space = cmsg_space!(TimeSpec);
        let socket = self.stream.as_raw_fd();
        let got = recvmsg::<()>(socket, &mut parts, Some(&mut space), MsgFlags::empty())?;
        let mut age = Duration::ZERO;
        for message in got.cmsgs()? {
            if let ControlMessageOwned::ScmTimestampns(at) = message {
                age = (SystemTime::UNIX_EPOCH + Duration::from(at))
                    .elapsed()
                    .unwrap_or_default();
            }
        }
        let now = Instant::now();
        self.last = now.checked_sub(age).unwrap_or(now);
        Ok(got.bytes)
    }
}

fn read(reader: &mut BufReader<Timed>, shared: &Shared) -> io::Result<Option<Request>> {
    let (mut line, mut length, mut authorized) = (String::new(), 0, shared.key.is_none());
    let mut says_close = false;
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else {
            break;
        };
        match name.to_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap_or(0),
            "authorization" => authorized |= value.trim().strip_prefix("Bearer ") == shared.key.as_deref(),
            "connection" => says_close |= value.trim() == "close",
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(Request {
        path,
        authorized,
        says_close,
        body: serde_json::from_slice(&body).unwrap_or_default(),
        arrived: reader.get_ref().last,
    }))
}

/// Whether the connection stays.
fn answer(stream: &mut TcpStream, shared: &Shared, request: &Request) -> io::Result<bool> {
    const HEAD: &[u8] =
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    match &shared.behaviour {
        Behaviour::Raw(bytes) => {
            stream.write_all(bytes)?;
            return Ok(false);
        }
        Behaviour::Never => {
            thread::sleep(Duration::from_secs(30));
            return Ok(false);
        }
        Behaviour::Refuse(status) => {
            let error =
                json!({ "error": { "message": request.body.to_string(), "type": "overloaded_error" } });
            document(stream, *status, &error)?;
            return Ok(true);
        }
        _ => {}
    }
    if !request.body["stream"].as_bool().unwrap_or(false) {
        let data = json!([{ "index": 0, "embedding": [0.5], "relevance_score": 0.5 }]);
        let usage = json!({ "prompt_tokens": tokens_of(words(&request.body)), "total_tokens": tokens_of(words(&request.body)) });
        shared.wait(request.arrived + shared.pace.ttft);
        document(
            stream,
            200,
            &json!({ "data": data, "results": data, "usage": usage }),
        )?;
        return Ok(true);
    }
    stream.write_all(HEAD)?;
    match &shared.behaviour {
        Behaviour::Stream(bytes) => {
            chunk(stream, bytes)?;
            return Ok(false);
        }
        Behaviour::Endless(bytes) => loop {
            chunk(stream, bytes)?;
        },
        Behaviour::Hang => {
            chunk(stream, event(&request.body, "word ", false).as_bytes())?;
            thread::sleep(Duration::from_secs(30));
            return Ok(false);
        }
        _ => {}
    }
    tokens(stream, shared, request)?;
    match shared.behaviour {
        Behaviour::Unended => thread::sleep(Duration::from_secs(30)),
        _ => stream.write_all(b"0\r\n\r\n")?,
    }
    Ok(!matches!(
        shared.behaviour,
        Behaviour::Unended | Behaviour::Forgetful
    ))
}

fn tokens(stream: &mut TcpStream, shared: &Shared, request: &Request) -> io::Result<()> {
    let Pace { ttft, itl } = shared.pace;
    let factor = match shared.behaviour {
        Behaviour::ByModel => request.body["model"]
            .as_str()
            .and_then(|name| name.strip_prefix("slow-")?.parse().ok()),
        _ => None,
    };
    let factor: f64 = factor.unwrap_or(1.0);
    let count = request.body["max_tokens"].as_u64().unwrap_or(1);
    let token = event(&request.body, "word ", false);
    let mut written = Vec::new();
    for index in 0..count {
        shared.wait(request.arrived + (ttft + itl * index as u32).mul_f64(factor));
        written.push(request.arrived.elapsed().as_secs_f64() * 1e3);
        if index + 1 < count {
            chunk(stream, token.as_bytes())?;
        }
    }
    let usage = json!({ "choices": [], "usage": { "prompt_tokens": tokens_of(words(&request.body)), "completion_tokens": count } });
    let end = event(&request.body, "", true);
    shared
        .written
        .lock()
        .expect("nobody panics with it")
        .push(written);
    chunk(
        stream,
        format!("{token}{end}data: {usage}\n\ndata: [DONE]\n\n").as_bytes(),
    )
}

impl Shared {
    /// Until its time; or until the end of the pause that its time is in.
    fn wait(&self, time: Instant) {
        let mut time = time;
        if let (Behaviour::Stall(from, to), Some(first)) = (&self.behaviour, self.first.get())
            && time >= *first + *from
        {
            time = time.max(*first + *to);
        }
        thread::sleep(time.saturating_duration_since(Instant::now()));
    }
}

/// An event of a chat or of a completion.
fn event(body: &Value, text: &str, end: bool) -> String {
    let finish = if end { json!("length") } else { Value::Null };
    let choice = if body["messages"].is_array() {
        let delta = if end {
            json!({})
        } else {
            json!({ "content": text })
        };
        json!({ "index": 0, "delta": delta, "finish_reason": finish })
    } else {
        json!({ "index": 0, "text": text, "finish_reason": finish })
    };
    format!(
        "data: {}\n\n",
        json!({ "id": "stub", "object": "chunk", "choices": [choice] })
    )
}

fn words(body: &Value) -> usize {
    let texts = [
        &body["messages"][0]["content"],
        &body["prompt"],
        &body["input"],
        &body["query"],
    ];
    let count = |text: &str| text.split_whitespace().count();
    let documents = body["documents"].as_array().into_iter().flatten();
    texts
        .into_iter()
        .chain(documents)
        .filter_map(Value::as_str)
        .map(count)
        .sum()
}

fn chunk(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let mut whole = format!("{:x}\r\n", bytes.len()).into_bytes();
    whole.extend_from_slice(bytes);
    whole.extend_from_slice(b"\r\n");
    stream.write_all(&whole)
}

fn document(stream: &mut TcpStream, status: u16, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status} X\r\nserver: stub/1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes())
}
