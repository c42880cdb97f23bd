//! Lines on their way to stderr, from a thread of their own.
//!
//! A line is copied into one buffer that all threads share; the writing thread takes the whole buffer
//! at once. Nobody who logs waits for a write, nor, while lines follow each other closely, wakes a
//! thread: it would cost a log-in more than its line.
//!
//! What can't be written (a full disk, a reader that is gone) is kept and tried again, while lines
//! gather behind it. Only when there is no room for more are lines dropped, and counted.

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

/// Bytes of lines that may wait, beside those that are being written; more lines are dropped rather than
/// that a client waits.
const LIMIT: usize = 16 * 1024 * 1024;
/// What a buffer has from the start, and keeps once it is written, in bytes: a storm's in [`GATHER`].
const KEPT: usize = 64 * 1024;
/// Bytes given to the system at once, in whole lines: at the end it is seen by them that a reader gets on.
const AT_ONCE: usize = 16 * 1024;
/// After a write, lines gather for so long; after one that would have to wait, too.
const GATHER: Duration = Duration::from_millis(10);
/// After a write that failed.
const RETRY: Duration = Duration::from_secs(1);
/// How long the end of the process waits for a reader that takes nothing, and for one that gets on.
const LAST: Duration = Duration::from_secs(1);
const LAST_OF_ALL: Duration = Duration::from_secs(5);

/// Lines that wait.
struct Waiting {
    bytes: Vec<u8>,
    /// Lines for which there was no room.
    missing: u64,
    closing: bool,
}

/// Where lines are put.
pub(super) struct Lines {
    waiting: Mutex<Waiting>,
    there: Condvar,
    /// Of its own, so that a line that is put wakes nobody who pauses.
    closing: Condvar,
    /// Bytes so far.
    written: AtomicU64,
}

impl Lines {
    /// Lines that are written to `out`, and what sees to it that they are. When lines are missing, `note`
    /// is told how many, on the writing thread, at the moment when the lines before them have been taken.
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
            there: Condvar::new(),
            closing: Condvar::new(),
            written: AtomicU64::new(0),
        });
        let (over, is_over) = mpsc::channel();
        let taken = Arc::clone(&lines);
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            taken.write_all_to(out, note);
            let _ = over.send(());
        })?;
        Ok((Arc::clone(&lines), Writing { lines, is_over }))
    }

    fn write_all_to(&self, mut out: impl Write, note: impl Fn(u64)) {
        let mut bytes = Vec::with_capacity(KEPT);
        loop {
            let missing = {
                let mut waiting = self.waiting.lock();
                while waiting.bytes.is_empty() {
                    if waiting.closing {
                        return;
                    }
                    self.there.wait(&mut waiting);
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

    /// Writes all of it, however long that takes; false when that fails at the end of the process.
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

    /// Waits for so long, or until the process is to end.
    fn pause(&self, time: Duration) {
        let mut waiting = self.waiting.lock();
        self.closing.wait_while_for(&mut waiting, |waiting| !waiting.closing, time);
    }

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
            self.there.notify_one();
        }
    }
}

/// Takes whole lines, always.
impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The writing thread; dropped, it writes what is left.
pub(super) struct Writing {
    lines: Arc<Lines>,
    is_over: mpsc::Receiver<()>,
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.lines.waiting.lock().closing = true;
        self.lines.there.notify_one();
        self.lines.closing.notify_one();
        let (since, mut seen) = (Instant::now(), self.lines.written.load(Relaxed));
        while self.is_over.recv_timeout(LAST) == Err(mpsc::RecvTimeoutError::Timeout) {
            let written = self.lines.written.load(Relaxed);
            if mem::replace(&mut seen, written) == written || since.elapsed() >= LAST_OF_ALL {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More than anything here takes.
    const LONG: Duration = Duration::from_secs(60);

    /// Hands what is written on; each write is asked for first.
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
        // The first is being written: these gather.
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
            thread::sleep(LAST / 3);
            Ok(n)
        });
        put(&lines, &[b'x'; 6 * AT_ONCE]);
        drop(writing);
        assert_eq!(seen.try_iter().flatten().count(), 6 * AT_ONCE);
    }

    /// Drops `writing` and says how long that took.
    fn ends(writing: Writing) -> Duration {
        let (over, is_over) = mpsc::channel();
        thread::spawn(move || {
            let since = Instant::now();
            drop(writing);
            let _ = over.send(since.elapsed());
        });
        is_over.recv_timeout(LONG).expect("an end")
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
        assert!(took >= LAST && took < LAST_OF_ALL, "{took:?}");
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
