//! Whether a client and its messages cost the same however many clients there are, and how many
//! fit on this machine: several processes on one port.

use std::{
    io::{BufRead, BufReader, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    rc::Rc,
    sync::mpsc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

use super::{
    Figures,
    echo::{HEAD, MESSAGE, frame},
    load::{self, Record, Stream, Window, handshake_frame, login_frame},
    proxies::{Cluster, Folder, Process},
};

/// How many clients, the figures' names, and how many in words.
pub type Size = (usize, &'static str, &'static str, &'static str);
pub const SIZES: [Size; 5] = [
    (100, "growth bytes 100", "growth cpu 100", "100"),
    (1_000, "growth bytes 1000", "growth cpu 1000", "1,000"),
    (5_000, "growth bytes 5000", "growth cpu 5000", "5,000"),
    (9_000, "growth bytes 9000", "growth cpu 9000", "9,000"),
    (19_000, "growth bytes 19000", "growth cpu 19000", "19,000"),
];
/// A process has two descriptors for each client, of 20,000.
const OF_ONE_PROCESS: usize = 9_500;
/// Clients that are busy at the same time. They are other ones all the time.
const BUSY: usize = 64;

const CEILING: usize = 80_000;
const CEILING_PROCESSES: usize = 9;
/// Processes that clients are in, and as many with the Community's ends.
const CEILING_ENDS: usize = 5;
/// For all to log in, and for all to be echoed.
const CEILING_TIME: Duration = Duration::from_secs(180);

/// A client's bytes, and the CPU time of its messages, at each of [`SIZES`].
pub async fn growth(folder: &Folder, window: Window) -> Figures {
    let mut figures = Vec::new();
    let (mut all_bytes, mut all_cpu) = (Vec::new(), Vec::new());
    for (clients, bytes_name, cpu_name, _) in SIZES {
        let (community, at) = Process::role("community");
        let cluster = Cluster::start(folder, clients.div_ceil(OF_ONE_PROCESS), &[at]);
        // What threads hold once, however few clients they have.
        drop(load::idle(8, cluster.address, None).await);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = cluster.memory();
        let streams = load::idle(clients, cluster.address, None).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let bytes = (cluster.memory() - before) / clients as f64;
        let cpu = in_turn(&cluster, streams, window).await * 1e6;
        figures.extend([(bytes_name, bytes), (cpu_name, cpu)]);
        all_bytes.push(bytes);
        all_cpu.push(cpu);
        drop((cluster, community));
    }
    figures.extend([("growth bytes", spread(&all_bytes)), ("growth cpu", spread(&all_cpu))]);
    figures
}

/// The highest to the lowest.
fn spread(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max) / values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// The proxies' CPU seconds for a message, when every client has a message echoed in its turn.
async fn in_turn(cluster: &Cluster, streams: Vec<Stream>, window: Window) -> f64 {
    let mut shares: Vec<Vec<Stream>> = (0..BUSY).map(|_| Vec::new()).collect();
    for (i, stream) in streams.into_iter().enumerate() {
        shares[i % BUSY].push(stream);
    }
    let record = Rc::new(Record::new(window));
    let mut workers = JoinSet::new();
    for mut share in shares {
        let record = Rc::clone(&record);
        workers.spawn_local(async move {
            while record.goes_on() {
                for stream in &mut share {
                    if !record.goes_on() {
                        break;
                    }
                    let since = Instant::now();
                    echoed(stream).await;
                    record.note(since);
                }
            }
        });
    }
    record.measure(|| cluster.cpu(), || workers.join_all()).await.cpu
}

async fn echoed(stream: &mut Stream) {
    let mut buffer = [0; MESSAGE];
    stream.write_all(&frame(4, &[b'm'; MESSAGE - HEAD])).await.expect("a message");
    stream.read_exact(&mut buffer).await.expect("an echo");
}

/// [`CEILING`] clients on one port of [`CEILING_PROCESSES`] processes.
pub fn ceiling(folder: &Folder) -> Figures {
    let communities: Vec<(Process, SocketAddr)> = (0..CEILING_ENDS).map(|_| Process::role("community")).collect();
    let addresses: Vec<SocketAddr> = communities.iter().map(|(_, address)| *address).collect();
    let cluster = Cluster::start(folder, CEILING_PROCESSES, &addresses);
    std::thread::sleep(Duration::from_millis(300));
    let (before, since) = (cluster.memory(), Instant::now());
    let ends: Vec<Ends> = (0..CEILING_ENDS).map(|end| Ends::start(cluster.address, end)).collect();
    ends.iter().for_each(|ends| ends.hear("here"));
    let rate = CEILING as f64 / since.elapsed().as_secs_f64();
    std::thread::sleep(Duration::from_secs(2));
    let memory = cluster.memory();
    let (cpu, since) = (cluster.cpu(), Instant::now());
    std::thread::sleep(Duration::from_secs(5));
    let idle = (cluster.cpu() - cpu) / since.elapsed().as_secs_f64();
    for mut ends in ends {
        ends.say();
        ends.hear("echoed");
    }
    vec![
        ("ceiling bytes", (memory - before) / CEILING as f64),
        ("ceiling memory", memory / CEILING_PROCESSES as f64 / super::MIB),
        ("ceiling rate", rate),
        ("ceiling idle", idle * 1e3),
    ]
}

/// A process with a share of the clients; ends when dropped.
struct Ends {
    child: Child,
    said: mpsc::Receiver<String>,
}

impl Ends {
    fn start(to: SocketAddr, end: usize) -> Self {
        // An address of its own for each, for a local port is a client's alone.
        let from = IpAddr::from(Ipv4Addr::new(127, 0, 1, u8::try_from(end + 1).unwrap()));
        let count = CEILING / CEILING_ENDS;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--role", "clients", &to.to_string(), &count.to_string(), &from.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (says, said) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| says.send(line)));
        Self { child, said }
    }

    fn hear(&self, word: &str) {
        let said = self.said.recv_timeout(CEILING_TIME).expect("clients in time");
        assert_eq!(said, word);
    }

    fn say(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The role: logs `count` clients in from one address and says "here"; asked, has all echoed and
/// says "echoed"; ends with its parent.
pub fn clients(to: SocketAddr, count: usize, from: IpAddr) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let mut streams = load::made(count, move || log_in_from(to, from)).await;
        println!("here");
        let mut line = String::new();
        if std::io::stdin().read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        for stream in &mut streams {
            echoed(stream).await;
        }
        println!("echoed");
        let _ = std::io::stdin().read_line(&mut line);
    });
}

async fn log_in_from(to: SocketAddr, from: IpAddr) -> std::io::Result<Stream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    let tcp: TcpStream = socket.connect(to).await?;
    tcp.set_nodelay(true)?;
    let mut stream: Stream = Box::new(tcp);
    for words in [handshake_frame(), login_frame()] {
        stream.write_all(&words).await?;
        load::read_frame(&mut stream).await?;
    }
    Ok(stream)
}
