//! Connecting to a host by whichever of its addresses works.

use std::{
    fmt,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    time::{Instant, Sleep, timeout_at},
};

use super::{
    attempts::{AttemptStep, Attempts},
    lookup::{LookupError, RemoteHost},
};

/// How many addresses an error names. The others are counted.
const MOST_NAMED: usize = 8;

/// What became of one address.
#[derive(Debug)]
pub struct FailedAttempt {
    /// The address.
    pub address: SocketAddr,
    /// The system's error; `None`: there was no answer in time.
    pub error: Option<io::Error>,
}

/// No address of a host accepted a connection.
#[derive(Debug)]
pub struct Unconnected {
    /// What became of each address, in the order in which that was known.
    pub attempts: Vec<FailedAttempt>,
    /// The time that all attempts had together.
    pub within: Duration,
}

/// Why there is no connection to a host.
#[derive(Debug)]
pub enum ConnectFailure {
    /// The host has no address that can be used.
    NotResolved(LookupError),
    /// The look-up of its name took too long. It continues, for the next connection.
    LookupTimedOut(Duration),
    /// None of its addresses accepted a connection.
    Unconnected(Unconnected),
}

impl fmt::Display for Unconnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let silent = format!("no answer within {}", humantime::format_duration(self.within));
        for (at, FailedAttempt { address, error }) in self.attempts.iter().take(MOST_NAMED).enumerate() {
            if at > 0 {
                f.write_str(", ")?;
            }
            if self.attempts.len() > 1 {
                write!(f, "{address}: ")?;
            }
            match error {
                Some(error) => error.fmt(f)?,
                None => f.write_str(&silent)?,
            }
        }
        match self.attempts.len().saturating_sub(MOST_NAMED) {
            0 => Ok(()),
            more => write!(f, ", and {more} more"),
        }
    }
}

/// Connects to `host` by the first of its addresses that accepts, which is tried first the next time. A look-up of its
/// name, and all attempts together, take no longer than `within`.
///
/// # Errors
/// The host has no address, or none that accepts a connection.
pub async fn connect(host: &RemoteHost, within: Duration) -> Result<(TcpStream, SocketAddr), ConnectFailure> {
    let deadline = Instant::now() + within;
    let found = timeout_at(deadline, host.addresses()).await;
    let addresses = found.map_err(|_| ConnectFailure::LookupTimedOut(within))?.map_err(ConnectFailure::NotResolved)?;
    let connected = match *addresses {
        // The most common case needs no race.
        [address] => match timeout_at(deadline, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => Ok((tcp, address)),
            Ok(Err(error)) => Err(vec![FailedAttempt { address, error: Some(error) }]),
            Err(_) => Err(vec![FailedAttempt { address, error: None }]),
        },
        _ => {
            let mut race = Race::new(Attempts::new(host.in_order(&addresses), within));
            match timeout_at(deadline, poll_fn(|cx| race.poll(cx))).await {
                Ok(Some((tcp, address))) => {
                    host.connected(address);
                    Ok((tcp, address))
                }
                Ok(None) | Err(_) => Err(race.failed()),
            }
        }
    };
    connected.map_err(|attempts| {
        host.expire();
        ConnectFailure::Unconnected(Unconnected { attempts, within })
    })
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

/// Attempts that run at the same time. When it is dropped, those that have not ended are given up.
struct Race {
    attempts: Attempts,
    running: Vec<(SocketAddr, Connecting)>,
    failed: Vec<FailedAttempt>,
    next_start: Option<Pin<Box<Sleep>>>,
}

impl Race {
    fn new(attempts: Attempts) -> Self {
        Self { attempts, running: Vec::new(), failed: Vec::new(), next_start: None }
    }

    /// The first connection, and its address; `None` if every attempt has failed.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<(TcpStream, SocketAddr)>> {
        loop {
            let mut at = 0;
            while let Some((address, connecting)) = self.running.get_mut(at) {
                match connecting.as_mut().poll(cx) {
                    Poll::Pending => at += 1,
                    Poll::Ready(Ok(tcp)) => return Poll::Ready(Some((tcp, *address))),
                    Poll::Ready(Err(error)) => {
                        self.failed.push(FailedAttempt { address: *address, error: Some(error) });
                        drop(self.running.remove(at));
                        self.attempts.failed();
                    }
                }
            }
            match self.attempts.next(Instant::now()) {
                AttemptStep::Start(address) => self.running.push((address, Box::pin(TcpStream::connect(address)))),
                AttemptStep::WaitUntil(time) => {
                    let sleep = self.next_start.insert(Box::pin(tokio::time::sleep_until(time)));
                    if sleep.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
                AttemptStep::Wait => return Poll::Pending,
                AttemptStep::Failed => return Poll::Ready(None),
            }
        }
    }

    /// What became of each address that was tried.
    fn failed(self) -> Vec<FailedAttempt> {
        let silent = self.running.iter().map(|(address, _)| FailedAttempt { address: *address, error: None });
        let silent: Vec<FailedAttempt> = silent.collect();
        self.failed.into_iter().chain(silent).collect()
    }
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Socket, Type};
    use tokio::net::TcpListener;

    use super::*;

    /// A listener whose queue of connections is full, so that the system is silent to further ones.
    async fn silent() -> (SocketAddr, Socket, Vec<TcpStream>) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("any port");
        socket.listen(1).expect("listening");
        let address = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("bound");
        let mut waiting = Vec::new();
        while let Ok(Ok(tcp)) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
            waiting.push(tcp);
        }
        (address, socket, waiting)
    }

    async fn closed() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.and_then(|listener| listener.local_addr()).expect("any port")
    }

    #[tokio::test]
    async fn a_silent_address_and_one_that_refuses_do_not_hide_one_that_works() {
        let (silent, _socket, _waiting) = silent().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("any port");
        let works = listener.local_addr().expect("bound");
        let host = RemoteHost::of_addresses(&[silent, closed().await, works]);
        let (_tcp, address) = connect(&host, Duration::from_secs(30)).await.expect("a connection");
        assert_eq!(address, works);
        assert_eq!(host.in_order(&[silent, works]), [works, silent], "it is tried first the next time");
    }

    #[tokio::test]
    async fn each_address_is_named_where_none_works() {
        let (silent, _socket, _waiting) = silent().await;
        let closed = closed().await;
        let within = Duration::from_millis(400);
        let host = RemoteHost::of_addresses(&[silent, closed]);
        let Err(ConnectFailure::Unconnected(error)) = connect(&host, within).await else { panic!("connected") };
        let expected = format!("{closed}: Connection refused (os error 111), {silent}: no answer within 400ms");
        assert_eq!(error.to_string(), expected);
        let host = RemoteHost::of_addresses(&[silent]);
        let Err(ConnectFailure::Unconnected(error)) = connect(&host, within).await else { panic!("connected") };
        assert_eq!(error.to_string(), "no answer within 400ms");
    }

    #[test]
    fn an_error_of_very_many_addresses_is_short() {
        let attempt = |n| FailedAttempt { address: SocketAddr::from(([192, 0, 2, n], 1533)), error: None };
        let error = Unconnected { attempts: (0..200).map(attempt).collect(), within: Duration::from_secs(5) };
        let text = error.to_string();
        assert!(text.ends_with("192.0.2.7:1533: no answer within 5s, and 192 more"), "{text}");
    }
}
