//! One end of a byte stream: the Community server, or a raw client. It does what the script tells it.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use super::{
    adapter,
    ledger::{Ledger, To},
    pipe::Pipe,
};

/// How an end closes, once it has written everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    Half,
    Whole,
}

/// What the script has told a peer, and what became of it.
#[derive(Debug)]
pub struct Control {
    to: To,
    echoes: bool,
    out: VecDeque<u8>,
    /// A frame that has not arrived whole.
    partial: Vec<u8>,
    pub chunk: usize,
    pub every: Duration,
    pub stopped: bool,
    closing: Option<Closing>,
    vanishes: bool,
    /// When it wrote its last byte by its own will, and when it let go altogether.
    pub shut: Option<Instant>,
    pub closed: Option<Instant>,
    /// When it read the end of the other side's stream, or an error.
    pub saw_end: Option<Instant>,
    pub saw_error: bool,
    waker: Option<Waker>,
}

/// A handle on a peer.
#[derive(Clone)]
pub struct Peer {
    pub control: Arc<Mutex<Control>>,
    ledger: Arc<Mutex<Ledger>>,
}

impl Peer {
    /// A peer that receives what is sent `to` it.
    pub fn new(to: To, echoes: bool, ledger: Arc<Mutex<Ledger>>) -> Self {
        let control = Control {
            to,
            echoes,
            out: VecDeque::new(),
            partial: Vec::new(),
            chunk: 65_536,
            every: Duration::ZERO,
            stopped: false,
            closing: None,
            vanishes: false,
            shut: None,
            closed: None,
            saw_end: None,
            saw_error: false,
            waker: None,
        };
        Self { control: Arc::new(Mutex::new(control)), ledger }
    }

    /// Changes what it is told.
    pub fn tell(&self, change: impl FnOnce(&mut Control)) {
        let mut control = self.control.lock();
        change(&mut control);
        if let Some(waker) = control.waker.take() {
            waker.wake();
        }
    }

    /// Whether it takes what comes.
    pub fn wants_to_read(&self) -> bool {
        let control = self.control.lock();
        let busy = control.echoes && !control.out.is_empty();
        !control.stopped && !busy && control.closed.is_none() && control.saw_end.is_none()
    }

    /// Whether the script, or the other side, has ended it.
    pub fn is_ending(&self) -> bool {
        let control = self.control.lock();
        control.closing.is_some() || control.vanishes || control.closed.is_some() || control.saw_end.is_some()
    }

    /// Sends a frame, unless it is closing.
    pub fn say(&self, to: To, size: Option<usize>) {
        if !self.is_ending() {
            let frame = {
                let mut ledger = self.ledger.lock();
                ledger.exchanges += 1;
                ledger.say(to, size)
            };
            self.tell(|control| control.out.extend(frame));
        }
    }

    /// Sends the message that ends the session, then closes.
    pub fn good_bye(&self, to: To) {
        if !self.is_ending() {
            let frame = adapter::good_bye(0);
            self.ledger.lock().sends(to, &frame);
            self.tell(|control| control.out.extend(frame));
            self.close(Closing::Whole);
        }
    }

    pub fn close(&self, how: Closing) {
        self.tell(|control| {
            if control.closing != Some(Closing::Whole) {
                control.closing = Some(how);
            }
        });
    }

    pub fn vanish(&self) {
        self.tell(|control| control.vanishes = true);
    }

    /// Bytes that stand before everything else.
    pub fn first_words(&self, bytes: &[u8]) {
        self.tell(|control| bytes.iter().rev().for_each(|byte| control.out.push_front(*byte)));
    }

    /// Bytes have come in.
    pub fn receive(&self, bytes: &[u8]) {
        self.control.lock().receive(bytes, &self.ledger);
    }

    /// Lives on `pipe` to its end.
    pub async fn live(self, mut pipe: Pipe) {
        let mut pause: Option<Pin<Box<Sleep>>> = None;
        let mut buffer = vec![0; 65_536];
        poll_fn(|cx| {
            let mut control = self.control.lock();
            control.waker = Some(cx.waker().clone());
            control.poll(&mut pipe, &mut pause, &mut buffer, &self.ledger, cx)
        })
        .await;
        self.ledger
            .lock()
            .note(if self.control.lock().to == To::Server { "server ends" } else { "client ends" }, [0; 2]);
        self.control.lock().closed.get_or_insert_with(Instant::now);
    }
}

impl Control {
    fn receive(&mut self, bytes: &[u8], ledger: &Mutex<Ledger>) {
        let mut ledger = ledger.lock();
        ledger.receives(self.to, bytes);
        if self.to == To::Client {
            return;
        }
        self.partial.extend_from_slice(bytes);
        while let Some(length) = self.partial.first_chunk::<4>().map(|length| u32::from_be_bytes(*length) as usize) {
            if self.partial.len() < length + 4 {
                break;
            }
            let frame: Vec<u8> = self.partial.drain(..length + 4).collect();
            let (kind, channel) = (&frame[4..6], &frame[8..12]);
            if self.echoes && kind == [0, 4] && self.closing.is_none() {
                ledger.exchanges += 1;
                ledger.sends(To::Client, &frame);
                self.out.extend(frame);
            } else if kind == [0, 3] && channel == [0; 4] {
                self.closing = Some(Closing::Whole);
            }
        }
    }

    fn poll(
        &mut self,
        pipe: &mut Pipe,
        pause: &mut Option<Pin<Box<Sleep>>>,
        buffer: &mut [u8],
        ledger: &Mutex<Ledger>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            if self.vanishes {
                pipe.reset_now();
                return Poll::Ready(());
            }
            while !self.out.is_empty() {
                match Pin::new(&mut *pipe).poll_write(cx, self.out.as_slices().0) {
                    Poll::Ready(Ok(n)) => drop(self.out.drain(..n)),
                    Poll::Ready(Err(_)) => self.out.clear(),
                    Poll::Pending => break,
                }
            }
            match self.closing.filter(|_| self.out.is_empty()) {
                Some(Closing::Whole) => {
                    self.shut.get_or_insert_with(Instant::now);
                    pipe.close_now();
                    return Poll::Ready(());
                }
                Some(Closing::Half) if self.shut.is_none() => {
                    self.shut = Some(Instant::now());
                    pipe.shutdown_now();
                }
                _ => (),
            }
            if self.stopped || self.saw_end.is_some() || self.echoes && !self.out.is_empty() {
                return Poll::Pending;
            }
            if let Some(pausing) = pause {
                if pausing.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                *pause = None;
            }
            let size = self.chunk.clamp(1, buffer.len());
            let mut into = ReadBuf::new(&mut buffer[..size]);
            let read = match Pin::new(&mut *pipe).poll_read(cx, &mut into) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(read) => read,
            };
            if read.is_ok() && !into.filled().is_empty() {
                self.receive(into.filled(), ledger);
                if !self.every.is_zero() {
                    *pause = Some(Box::pin(tokio::time::sleep(self.every)));
                }
            } else {
                self.saw_end = Some(Instant::now());
                self.saw_error = read.is_err();
                // Whoever reads the end of the other side's words has nothing to wait for.
                self.closing = Some(Closing::Whole);
            }
        }
    }
}
