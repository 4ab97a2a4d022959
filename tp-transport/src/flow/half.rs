//! The two directions of a flow.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use prost::Message;
use quinn::{ReadExactError, RecvStream, SendStream, WriteError};

use super::FlowError;
use crate::{
    codes::ResetCode,
    credit::{ReceiveCredit, SendCredit},
    message::{frame, read_frame},
};

/// The number of flows.
#[derive(Debug, Clone, Default)]
pub(crate) struct FlowCount(Arc<AtomicUsize>);

/// Counts one flow until dropped.
#[derive(Debug)]
pub(super) struct CountGuard(FlowCount);

impl FlowCount {
    pub(super) fn enter(&self) -> Arc<CountGuard> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Arc::new(CountGuard(self.clone()))
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for CountGuard {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The sending direction. Dropped before [`SendHalf::finish`], it resets.
#[derive(Debug)]
pub struct SendHalf {
    pub(super) stream: SendStream,
    ended: bool,
    /// `None` if the other end grants none: only QUIC's windows apply.
    credit: Option<Arc<SendCredit>>,
    /// Counted for as long as one half lives, at the end that did not open it.
    _guard: Option<Arc<CountGuard>>,
}

impl SendHalf {
    pub(super) fn new(stream: SendStream) -> Self {
        Self {
            stream,
            ended: false,
            credit: None,
            _guard: None,
        }
    }

    pub(super) fn flow(&self) -> u64 {
        quinn::VarInt::from(self.stream.id()).into_inner()
    }

    pub(super) fn keep(&mut self, guard: Arc<CountGuard>) {
        self._guard = Some(guard);
    }

    pub(super) fn use_credit(&mut self, credit: SendCredit) {
        self.credit = Some(Arc::new(credit));
    }

    /// Waits for credit, then hands all of `data` over; the tunnel keeps it until acknowledged.
    ///
    /// # Errors
    ///
    /// [`FlowError::Reset`] if the other end no longer reads, [`FlowError::TunnelLost`],
    /// [`FlowError::Closed`].
    pub async fn write_all(&mut self, data: &[u8]) -> Result<(), FlowError> {
        self.write_chunk(Bytes::copy_from_slice(data)).await
    }

    /// As [`SendHalf::write_all`], without a copy.
    ///
    /// # Errors
    ///
    /// As [`SendHalf::write_all`].
    pub async fn write_chunk(&mut self, mut data: Bytes) -> Result<(), FlowError> {
        while !data.is_empty() {
            let most = usize::try_from(self.credit().await?).unwrap_or(usize::MAX);
            let part = data.split_to(most.min(data.len()));
            if let Some(credit) = &self.credit {
                credit.spend(part.len() as u64);
            }
            self.stream.write_chunk(part).await?;
        }

        Ok(())
    }

    /// The bytes that the other end accepts, once there are any.
    pub(crate) async fn credit(&self) -> Result<u64, FlowError> {
        let Some(credit) = &self.credit else {
            return Ok(u64::MAX);
        };
        let left = credit.left();
        if left > 0 {
            return Ok(left);
        }
        tokio::select! {
            left = credit.available() => Ok(left),
            stopped = self.stopped() => Err(stopped.err().unwrap_or(FlowError::Closed)),
        }
    }

    /// The bytes that the other end accepts now.
    pub(crate) fn credit_left(&self) -> u64 {
        self.credit
            .as_ref()
            .map_or(u64::MAX, |credit| credit.left())
    }

    /// For a task that gives unneeded credit back.
    pub(crate) fn shared_credit(&self) -> Option<Arc<SendCredit>> {
        self.credit.clone()
    }

    /// Half-close: the other end reads all that was written, then the end of the flow.
    pub fn finish(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            // Fails only if the stream has ended already.
            let _ = self.stream.finish();
        }
    }

    /// Ends this direction with an error; what the other end has not read is lost.
    pub fn reset(&mut self, code: ResetCode) {
        self.ended = true;
        // Fails only if the stream has ended already.
        let _ = self.stream.reset(code.into());
    }

    /// Resolves when the other end has acknowledged everything after [`SendHalf::finish`], or
    /// with an error when it no longer reads or the tunnel is lost.
    pub fn stopped(&self) -> impl Future<Output = Result<(), FlowError>> + Send + Sync + 'static {
        let stopped = self.stream.stopped();
        async move {
            match stopped.await {
                Ok(None) => Ok(()),
                Ok(Some(code)) => Err(FlowError::Reset(code.into())),
                Err(error) => Err(WriteError::from(error).into()),
            }
        }
    }

    /// A message before the raw bytes, which takes no credit.
    pub(super) async fn write_message(&mut self, message: &impl Message) -> Result<(), FlowError> {
        Ok(self.stream.write_chunk(frame(message)?).await?)
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        if !self.ended {
            self.reset(ResetCode::Aborted);
        }
    }
}

/// The receiving direction. Dropped before its end, it tells the other end to stop.
#[derive(Debug)]
pub struct RecvHalf {
    pub(super) stream: RecvStream,
    pub(super) ended: bool,
    /// The error of the stream. QUIC reports it once, and the end of the stream from then on.
    failure: Option<FlowError>,
    /// `None` if the other end does not keep to any.
    credit: Option<ReceiveCredit>,
    _guard: Option<Arc<CountGuard>>,
}

impl RecvHalf {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            ended: false,
            failure: None,
            credit: None,
            _guard: None,
        }
    }

    pub(super) fn keep(&mut self, guard: Arc<CountGuard>) {
        self._guard = Some(guard);
    }

    pub(super) fn use_credit(&mut self, credit: Option<ReceiveCredit>) {
        self.credit = credit;
    }

    /// The next bytes, at most `max` of them; `None` once the other end has half-closed. Bytes read
    /// before count as passed on.
    ///
    /// # Errors
    ///
    /// [`FlowError::Reset`] if the other end has reset its direction, [`FlowError::TunnelLost`],
    /// [`FlowError::Closed`]; the same again on every later call.
    pub async fn read_chunk(&mut self, max: usize) -> Result<Option<Bytes>, FlowError> {
        self.settle()?;
        let read = self.stream.read_chunk(max, true).await;
        self.ended |= !matches!(read, Ok(Some(_)));
        let bytes = self.kept(read)?.map(|chunk| chunk.bytes);
        self.hand_over(bytes.as_slice());

        Ok(bytes)
    }

    /// Fills up to `chunks.len()` chunks, and waits only for the first. Bytes read before count as
    /// passed on.
    pub(crate) async fn read_chunks(
        &mut self,
        chunks: &mut [Bytes],
    ) -> Result<Option<usize>, FlowError> {
        self.settle()?;
        let read = self.stream.read_chunks(chunks).await;
        self.ended |= !matches!(read, Ok(Some(_)));
        let count = self.kept(read)?;
        self.hand_over(&chunks[..count.unwrap_or(0)]);

        Ok(count)
    }

    fn kept<T>(&mut self, read: Result<T, impl Into<FlowError>>) -> Result<T, FlowError> {
        let read = read.map_err(Into::into);
        self.failure = read.as_ref().err().cloned();

        read
    }

    fn settle(&mut self) -> Result<(), FlowError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        self.credit.as_mut().map_or(Ok(()), ReceiveCredit::settle)
    }

    fn hand_over(&mut self, chunks: &[Bytes]) {
        if let Some(credit) = &mut self.credit {
            credit.hand_over(chunks.iter().map(Bytes::len).sum());
        }
    }

    /// Tells the other end that nothing more will be read.
    pub fn stop(&mut self, code: ResetCode) {
        self.ended = true;
        // Fails only if the stream has ended already.
        let _ = self.stream.stop(code.into());
    }

    pub(super) async fn read_message<M: Message + Default>(&mut self) -> Result<M, FlowError> {
        let read = read_frame(&mut self.stream)
            .await
            .map_err(|error| match error {
                ReadExactError::FinishedEarly(_) => {
                    FlowError::Malformed("the stream ends within a message")
                }
                ReadExactError::ReadError(error) => error.into(),
            });
        let frame = self.kept(read)?;
        let frame = frame.ok_or(FlowError::Malformed("a message is too long"))?;

        M::decode(frame.as_slice()).map_err(|_| FlowError::Malformed("a message cannot be decoded"))
    }
}

impl Drop for RecvHalf {
    fn drop(&mut self) {
        if !self.ended {
            self.stop(ResetCode::Aborted);
        }
    }
}
