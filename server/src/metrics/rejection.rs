//! The reasons for which requests are turned away.

/// Why a request was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    QueueRequests,
    QueueTokens,
    PrepareQueue,
    Bodies,
    Connections,
    /// Too many from one address.
    Address,
    Draining,
    LoadWaiting,
    Usage,
    FlowQueue,
    /// Too many lists of administration.
    Administration,
}

impl Rejection {
    pub(super) const ALL: [Self; 11] = [
        Self::QueueRequests,
        Self::QueueTokens,
        Self::PrepareQueue,
        Self::Bodies,
        Self::Connections,
        Self::Address,
        Self::Draining,
        Self::LoadWaiting,
        Self::Usage,
        Self::FlowQueue,
        Self::Administration,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::QueueRequests => "max_num_queued_reqs",
            Self::QueueTokens => "max_num_queued_tokens",
            Self::PrepareQueue => "prepare_queue",
            Self::Bodies => "bodies",
            Self::Connections => "connections",
            Self::Address => "connections_per_address",
            Self::Draining => "draining",
            Self::LoadWaiting => "load_waiting",
            Self::Usage => "usage",
            Self::FlowQueue => "project_queue",
            Self::Administration => "administration",
        }
    }
}
