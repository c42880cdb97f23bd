//! The line writer: a buffer for lines, and a thread that writes them.
//!
//! A line is copied into one buffer that all threads share. The writing thread takes the whole buffer at once. So a
//! thread that logs never waits for a write. It wakes the writing thread only for the first line after a silence: to
//! wake it for each line of a log-in would cost more than the line itself.
//!
//! Bytes that can't be written (the disk is full, the reader is gone) are kept and tried again, and further lines
//! gather in the buffer. Only when there is no room for more, lines are dropped and counted.

use std::{
    io::{self, Write},
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

/// How many bytes of lines may wait, in addition to those that are being written. Further lines are dropped, so that no
/// client waits.
const LIMIT: usize = 16 * 1024 * 1024;
/// The size of a buffer in bytes at the start and after it was written. The lines of [`GATHER`] fit into it, also while
/// very many clients log in.
const KEPT: usize = 64 * 1024;
/// The most bytes of one write. It contains whole lines. At the end of the process, each write shows that the reader
/// still reads.
const AT_ONCE: usize = 16 * 1024;
/// How long the writing thread sleeps after a write, or when a write would block, so that lines gather.
const GATHER: Duration = Duration::from_millis(10);
/// How long it sleeps after a write that failed.
const RETRY: Duration = Duration::from_secs(1);
/// How long the process waits at its end for a reader that reads nothing.
const STALLED_TIMEOUT: Duration = Duration::from_secs(1);
/// How long it waits at the most for a reader that still reads.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Lines that wait to be written.
struct Waiting {
    bytes: Vec<u8>,
    /// How many lines were dropped because there was no room.
    missing: u64,
    /// The process ends.
    closing: bool,
}

/// The buffer that lines are put into.
pub(super) struct Lines {
    waiting: Mutex<Waiting>,
    /// Notified when the first line is put into the empty buffer.
    filled: Condvar,
    /// Notified when the process ends. It is separate, so that a line does not wake the thread while it sleeps.
    closing: Condvar,
    /// How many bytes have been written.
    written: AtomicU64,
}

impl Lines {
    /// Starts a thread that writes lines to `out`. When lines were dropped, the thread calls `note` with their number,
    /// after it has taken the lines before them.
    ///
    /// # Errors
    /// The system has no thread left.
    pub(super) fn start(
        out: impl Write + Send + 'static,
        note: impl Fn(u64) + Send + 'static,
    ) -> io::Result<(Arc<Self>, Writing)> {
        let waiting = Waiting { bytes: Vec::with_capacity(KEPT), missing: 0, closing: false };
        let lines = Arc::new(Self {
            waiting: Mutex::new(waiting),
            filled: Condvar::new(),
            closing: Condvar::new(),
            written: AtomicU64::new(0),
        });
        let (ended, has_ended) = mpsc::channel();
        let taken = Arc::clone(&lines);
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            taken.write_all_to(out, note);
            let _ = ended.send(());
        })?;
        Ok((Arc::clone(&lines), Writing { lines, has_ended }))
    }

    /// Writes lines until the process ends.
    fn write_all_to(&self, mut out: impl Write, note: impl Fn(u64)) {
        let mut bytes = Vec::with_capacity(KEPT);
        loop {
            let missing = {
                let mut waiting = self.waiting.lock();
                while waiting.bytes.is_empty() {
                    if waiting.closing {
                        return;
                    }
                    self.filled.wait(&mut waiting);
                }
                mem::swap(&mut bytes, &mut waiting.bytes);
                mem::take(&mut waiting.missing)
            };
            if missing > 0 {
                note(missing);
            }
            if !self.write_out(&mut out, &bytes) {
                return;
            }
            bytes.clear();
            bytes.shrink_to(KEPT);
            self.pause(GATHER);
        }
    }

    /// Writes all of `rest`, however long that takes. False if a write fails at the end of the process.
    fn write_out(&self, out: &mut impl Write, mut rest: &[u8]) -> bool {
        while !rest.is_empty() {
            let is_last_try = self.waiting.lock().closing;
            let most = &rest[..rest.len().min(AT_ONCE)];
            let lines = most.iter().rposition(|byte| *byte == b'\n').map_or(most.len(), |at| at + 1);
            let failed = match out.write(&most[..lines]) {
                Ok(n) if n > 0 => {
                    rest = &rest[n..];
                    self.written.fetch_add(n as u64, Relaxed);
                    continue;
                }
                Ok(_) => io::ErrorKind::WriteZero,
                Err(error) => error.kind(),
            };
            match failed {
                io::ErrorKind::Interrupted => (),
                io::ErrorKind::WouldBlock => thread::sleep(GATHER),
                _ if is_last_try => return false,
                _ => self.pause(RETRY),
            }
        }
        true
    }

    /// Sleeps for `time`, or until the process ends.
    fn pause(&self, time: Duration) {
        let mut waiting = self.waiting.lock();
        self.closing.wait_while_for(&mut waiting, |waiting| !waiting.closing, time);
    }

    /// Adds a line, or drops it if there is no room.
    fn put(&self, line: &[u8]) {
        let mut waiting = self.waiting.lock();
        let was_empty = waiting.bytes.is_empty();
        if waiting.bytes.len() + line.len() > LIMIT {
            waiting.missing += 1;
        } else {
            waiting.bytes.extend_from_slice(line);
        }
        drop(waiting);
        if was_empty {
            self.filled.notify_one();
        }
    }
}

/// Accepts whole lines, and never fails.
impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The writing thread. When this is dropped, the thread writes the lines that wait, and ends.
pub(super) struct Writing {
    lines: Arc<Lines>,
    has_ended: mpsc::Receiver<()>,
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.lines.waiting.lock().closing = true;
        self.lines.filled.notify_one();
        self.lines.closing.notify_one();
        let (since, mut seen) = (Instant::now(), self.lines.written.load(Relaxed));
        while self.has_ended.recv_timeout(STALLED_TIMEOUT) == Err(mpsc::RecvTimeoutError::Timeout) {
            let written = self.lines.written.load(Relaxed);
            if mem::replace(&mut seen, written) == written || since.elapsed() >= END_TIMEOUT {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More time than anything here needs.
    const LONG: Duration = Duration::from_secs(60);

    /// Sends on what is written. Each write calls `ask` first, which returns how many bytes are written.
    struct Asked<F> {
        ask: F,
        written: mpsc::Sender<Vec<u8>>,
    }

    impl<F: FnMut(usize) -> io::Result<usize>> Write for Asked<F> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = (self.ask)(bytes.len())?;
            let _ = self.written.send(bytes[..n].to_vec());
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    type Started = (Arc<Lines>, Writing, mpsc::Receiver<Vec<u8>>, mpsc::Receiver<u64>);

    fn start(ask: impl FnMut(usize) -> io::Result<usize> + Send + 'static) -> Started {
        let ((written, seen), (noted, notes)) = (mpsc::channel(), mpsc::channel());
        let note = move |missing| {
            let _ = noted.send(missing);
        };
        let (lines, writing) = Lines::start(Asked { ask, written }, note).expect("a thread");
        (lines, writing, seen, notes)
    }

    fn put(lines: &Lines, line: &[u8]) {
        let mut lines = lines;
        lines.write_all(line).expect("taken");
    }

    #[test]
    fn who_logs_never_waits_and_is_told_what_is_missing() {
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let (lines, writing, seen, notes) = start(move |n| {
            let _ = may_go_on.recv();
            Ok(n)
        });
        put(&lines, b"first\n");
        while !lines.waiting.lock().bytes.is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
        // The first line is being written. These gather.
        let line = [b'x'; 1024];
        for _ in 0..LIMIT / line.len() + 3 {
            put(&lines, &line);
        }
        assert_eq!(lines.waiting.lock().missing, 3);
        drop(go_on);
        drop(writing);
        assert_eq!(notes.try_iter().collect::<Vec<_>>(), [3]);
        let seen: Vec<u8> = seen.try_iter().flatten().collect();
        assert!(seen.starts_with(b"first\nxxx"));
        assert_eq!(seen.len(), "first\n".len() + LIMIT);
    }

    #[test]
    fn what_can_not_be_written_is_tried_again_from_where_it_stopped() {
        let mut answers = [Ok(3), Err(io::ErrorKind::WouldBlock), Err(io::ErrorKind::StorageFull)].into_iter();
        let (lines, writing, seen, _) = start(move |n| answers.next().unwrap_or(Ok(n)).map_err(Into::into));
        put(&lines, b"a line\n");
        let in_time = || seen.recv_timeout(LONG).expect("written");
        assert_eq!([in_time(), in_time()].concat(), b"a line\n");
        drop(writing);
    }

    #[test]
    fn at_the_end_it_is_tried_once_more() {
        let (fails, failed) = mpsc::channel();
        let mut answers = [Ok(3), Err(io::ErrorKind::StorageFull)].into_iter();
        let (lines, writing, seen, _) = start(move |n| {
            let answer = answers.next().unwrap_or(Ok(n)).map_err(Into::into);
            if answer.is_err() {
                let _ = fails.send(());
            }
            answer
        });
        put(&lines, b"a line\n");
        failed.recv_timeout(LONG).expect("a failure");
        put(&lines, b"another\n");
        drop(writing);
        assert_eq!(seen.try_iter().flatten().collect::<Vec<_>>(), b"a line\nanother\n");
    }

    #[test]
    fn lines_are_written_whole() {
        let (lines, writing, seen, _) = start(Ok);
        let line = [&[b'x'; AT_ONCE / 3], &b"\n"[..]].concat();
        put(&lines, &line.repeat(9));
        drop(writing);
        assert!(seen.try_iter().all(|written| written.len() % line.len() == 0 && written.len() <= AT_ONCE));
    }

    #[test]
    fn the_end_waits_for_a_reader_that_gets_on() {
        let (lines, writing, seen, _) = start(|n| {
            thread::sleep(STALLED_TIMEOUT / 3);
            Ok(n)
        });
        put(&lines, &[b'x'; 6 * AT_ONCE]);
        drop(writing);
        assert_eq!(seen.try_iter().flatten().count(), 6 * AT_ONCE);
    }

    /// Drops `writing`, and returns how long that took.
    fn ends(writing: Writing) -> Duration {
        let (ended, has_ended) = mpsc::channel();
        thread::spawn(move || {
            let since = Instant::now();
            drop(writing);
            let _ = ended.send(since.elapsed());
        });
        has_ended.recv_timeout(LONG).expect("an end")
    }

    #[test]
    fn a_reader_that_hangs_does_not_hold_the_end_back() {
        let (_go_on, may_go_on) = mpsc::channel::<()>();
        let (lines, writing, ..) = start(move |n| {
            let _ = may_go_on.recv();
            Ok(n)
        });
        put(&lines, b"line\n");
        let took = ends(writing);
        assert!(took >= STALLED_TIMEOUT && took < END_TIMEOUT, "{took:?}");
    }

    #[test]
    fn nor_does_a_full_disk() {
        let (goes_on, is_over) = mpsc::channel::<()>();
        let (lines, writing, ..) = start(move |_| {
            let _goes_on = &goes_on;
            Err(io::ErrorKind::StorageFull.into())
        });
        put(&lines, b"line\n");
        ends(writing);
        assert_eq!(is_over.recv_timeout(LONG), Err(mpsc::RecvTimeoutError::Disconnected), "the thread has ended");
    }
}
