//! Measures whether a client and its messages cost the same with few and with many clients, and how many clients this
//! machine can serve with several processes on one port.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    rc::Rc,
    sync::mpsc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};

use super::{
    Figures,
    echo::{HEAD, MESSAGE, frame},
    load::{self, Record, Stream, Window},
    proxies::{Cluster, Contender, Folder, Process, Workload, start},
};

/// A number of clients, and the names of its figures.
pub struct Size {
    clients: usize,
    pub label: &'static str,
    pub bytes: &'static str,
    adds: &'static str,
    pub cpu: &'static str,
    user: &'static str,
}

macro_rules! size {
    ($clients:literal, $label:literal) => {
        Size {
            clients: $clients,
            label: $label,
            bytes: concat!("growth bytes ", $clients),
            adds: concat!("growth adds ", $clients),
            cpu: concat!("growth cpu ", $clients),
            user: concat!("growth user ", $clients),
        }
    };
}

pub const SIZES: [Size; 5] =
    [size!(100, "100"), size!(1000, "1,000"), size!(5000, "5,000"), size!(9000, "9,000"), size!(19000, "19,000")];
/// The most clients of one process, which needs two descriptors for each client and has 20,000.
const OF_ONE_PROCESS: usize = 9_500;
/// The number of clients that are busy at the same time. Which clients they are changes all the time.
const BUSY: usize = 64;

/// The number of clients of [`ceiling`].
const CEILING: usize = 80_000;
/// The number of multiplexers that serve them.
const CEILING_PROCESSES: usize = 9;
/// The number of processes that run the clients, and of the processes that run Community servers.
const CEILING_ENDS: usize = 5;
/// The time in which all clients must log in, and in which all must get their echoes.
const CEILING_TIME: Duration = Duration::from_secs(180);

/// At each of [`SIZES`]: the memory of a client, averaged over all clients and over the second half of them, and the
/// CPU time of messages.
///
/// Other contenders have one process, and so no more clients than one process can serve. Without a proxy, the figures
/// are the CPU time of the echo server: the cost of more sockets alone.
pub async fn growth(contender: Contender, folder: &Folder, window: Window) -> Figures {
    let mut figures = Vec::new();
    let (mut all_bytes, mut all_adds, mut all_cpu) = (Vec::new(), Vec::new(), Vec::new());
    for size in &SIZES {
        let clients = size.clients;
        if contender != Contender::Mux && clients > OF_ONE_PROCESS {
            continue;
        }
        let (community, at) = Process::role("community");
        let cluster = match contender {
            Contender::Mux => Cluster::start(folder, clients.div_ceil(OF_ONE_PROCESS), &[at], 1),
            _ => Cluster::peer(start(contender, Workload::Raw, folder)),
        };
        // The first clients make every thread allocate what it needs once.
        drop(load::idle(8, cluster.addresses[0], None).await);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = cluster.memory();
        let mut streams = load::idle(clients / 2, cluster.addresses[0], None).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let half = cluster.memory();
        streams.extend(load::idle(clients - clients / 2, cluster.addresses[0], None).await);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let all = cluster.memory();
        let bytes = (all - before) / clients as f64;
        let adds = (all - half) / (clients - clients / 2) as f64;
        let (cpu, user) = one_after_another(&cluster, streams, window).await;
        figures.extend([(size.cpu, cpu * 1e6), (size.user, user * 1e6)]);
        all_cpu.push(cpu);
        if contender != Contender::Nothing {
            figures.extend([(size.bytes, bytes), (size.adds, adds)]);
            all_bytes.push(bytes);
            all_adds.push(adds);
        }
        drop((cluster, community));
    }
    figures.push(("growth cpu", spread(&all_cpu)));
    if contender != Contender::Nothing {
        figures.extend([("growth bytes", spread(&all_bytes)), ("growth adds", spread(&all_adds))]);
    }
    figures
}

/// The ratio of the highest value to the lowest.
fn spread(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max) / values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// Every client sends a message and gets its echo, one after the other. Returns the proxies' CPU seconds for a
/// message, and the part of them in user mode.
async fn one_after_another(cluster: &Cluster, streams: Vec<Stream>, window: Window) -> (f64, f64) {
    let mut shares: Vec<Vec<Stream>> = (0..BUSY).map(|_| Vec::new()).collect();
    for (i, stream) in streams.into_iter().enumerate() {
        shares[i % BUSY].push(stream);
    }
    let record = Rc::new(Record::new(window));
    let mut workers = JoinSet::new();
    for mut share in shares {
        let record = Rc::clone(&record);
        workers.spawn_local(async move {
            while record.continues() {
                for stream in &mut share {
                    if !record.continues() {
                        break;
                    }
                    let since = Instant::now();
                    exchange_message(stream).await;
                    record.add(since);
                }
            }
        });
    }
    let (total, user) = (cluster.cpu(), cluster.user());
    let cpu = record.measure(|| cluster.cpu(), || workers.join_all()).await.cpu;
    (cpu, cpu * (cluster.user() - user) / (cluster.cpu() - total))
}

/// Sends a message and reads its echo.
async fn exchange_message(stream: &mut Stream) {
    let mut buffer = [0; MESSAGE];
    stream.write_all(&frame(4, &[b'm'; MESSAGE - HEAD])).await.expect("a message");
    stream.read_exact(&mut buffer).await.expect("an echo");
}

/// [`CEILING`] clients on [`CEILING_PROCESSES`] multiplexers, which share their ports. There are several ports, because
/// this machine has only 28,000 source ports for connections to one port.
pub fn ceiling(folder: &Folder) -> Figures {
    let communities: Vec<(Process, SocketAddr)> = (0..CEILING_ENDS).map(|_| Process::role("community")).collect();
    let addresses: Vec<SocketAddr> = communities.iter().map(|(_, address)| *address).collect();
    let cluster = Cluster::start(folder, CEILING_PROCESSES, &addresses, CEILING_ENDS);
    std::thread::sleep(Duration::from_millis(300));
    let (before, since) = (cluster.memory(), Instant::now());
    let processes: Vec<ClientProcess> = cluster.addresses.iter().copied().map(ClientProcess::start).collect();
    processes.iter().for_each(|process| process.expect_line("logged in"));
    let rate = CEILING as f64 / since.elapsed().as_secs_f64();
    std::thread::sleep(Duration::from_secs(2));
    let memory = cluster.memory();
    let (cpu, since) = (cluster.cpu(), Instant::now());
    std::thread::sleep(Duration::from_secs(5));
    let idle = (cluster.cpu() - cpu) / since.elapsed().as_secs_f64();
    for mut process in processes {
        process.ask_for_echoes();
        process.expect_line("echoed");
    }
    vec![
        ("ceiling bytes", (memory - before) / CEILING as f64),
        ("ceiling memory", memory / CEILING_PROCESSES as f64 / super::MIB),
        ("ceiling rate", rate),
        ("ceiling idle", idle * 1e3),
    ]
}

/// A process that runs a part of the clients. It is killed when this value is dropped.
struct ClientProcess {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl ClientProcess {
    fn start(to: SocketAddr) -> Self {
        let count = CEILING / CEILING_ENDS;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--role", "clients", &to.to_string(), &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, received) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines: received }
    }

    fn expect_line(&self, expected: &str) {
        let line = self.lines.recv_timeout(CEILING_TIME).expect("clients in time");
        assert_eq!(line, expected);
    }

    fn ask_for_echoes(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }
}

impl Drop for ClientProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a [`ClientProcess`] does: it logs `count` clients in and prints "logged in". When it reads a line, each client
/// sends a message and waits for its echo, then the process prints "echoed". It ends with its parent process.
pub fn clients(to: SocketAddr, count: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let mut streams = load::idle(count, to, None).await;
        println!("logged in");
        let mut line = String::new();
        if std::io::stdin().read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        for stream in &mut streams {
            exchange_message(stream).await;
        }
        println!("echoed");
        let _ = std::io::stdin().read_line(&mut line);
    });
}
