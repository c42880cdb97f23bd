//! Whether a client and its messages cost the same however many clients there are, and how many
//! fit on this machine: several processes on one port.

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
    proxies::{Cluster, Contender, Folder, Process, Way, start},
};

/// How many clients, and the figures' names.
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

/// A client's bytes, in all and what the second half of them adds, and the CPU time of its messages, at
/// each of [`SIZES`].
///
/// A peer is one process, so it has no more than that takes. With no proxy at all it is the CPU time of
/// the echo: what more sockets come to where nothing is done with a message.
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
            _ => Cluster::peer(start(contender, Way::Raw, folder)),
        };
        // What threads hold once, however few clients they have.
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
        let (cpu, user) = in_turn(&cluster, streams, window).await;
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

/// The highest to the lowest.
fn spread(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max) / values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// The proxies' CPU seconds for a message, when every client has a message echoed in its turn, and the
/// part of it that is not the system's.
async fn in_turn(cluster: &Cluster, streams: Vec<Stream>, window: Window) -> (f64, f64) {
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
    let (total, user) = (cluster.cpu(), cluster.user());
    let cpu = record.measure(|| cluster.cpu(), || workers.join_all()).await.cpu;
    (cpu, cpu * (cluster.user() - user) / (cluster.cpu() - total))
}

async fn echoed(stream: &mut Stream) {
    let mut buffer = [0; MESSAGE];
    stream.write_all(&frame(4, &[b'm'; MESSAGE - HEAD])).await.expect("a message");
    stream.read_exact(&mut buffer).await.expect("an echo");
}

/// [`CEILING`] clients on [`CEILING_PROCESSES`] processes, which share their ports: several, for a
/// port has but 28,000 others on this machine that may connect to it.
pub fn ceiling(folder: &Folder) -> Figures {
    let communities: Vec<(Process, SocketAddr)> = (0..CEILING_ENDS).map(|_| Process::role("community")).collect();
    let addresses: Vec<SocketAddr> = communities.iter().map(|(_, address)| *address).collect();
    let cluster = Cluster::start(folder, CEILING_PROCESSES, &addresses, CEILING_ENDS);
    std::thread::sleep(Duration::from_millis(300));
    let (before, since) = (cluster.memory(), Instant::now());
    let ends: Vec<Ends> = cluster.addresses.iter().copied().map(Ends::start).collect();
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
    fn start(to: SocketAddr) -> Self {
        let count = CEILING / CEILING_ENDS;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--role", "clients", &to.to_string(), &count.to_string()])
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

/// The role: logs `count` clients in and says "here"; asked, has all echoed and says "echoed"; ends
/// with its parent.
pub fn clients(to: SocketAddr, count: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let mut streams = load::idle(count, to, None).await;
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
