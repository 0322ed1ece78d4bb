//! Messages by reflection: every field of every request can be found and changed by its path.

use larder_csi::Client;
use larder_proto::{FILE_DESCRIPTOR_SET, Method, csi};
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage, Value,
};
use std::sync::LazyLock;
use tonic::{
    Code, Request, Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// What the specification defines.
pub(crate) fn descriptor(message: &str) -> MessageDescriptor {
    static POOL: LazyLock<DescriptorPool> =
        LazyLock::new(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap());
    POOL.get_message_by_name(&format!("csi.v1.{message}")).unwrap()
}

/// The method of that name.
pub(crate) fn method(name: &str) -> &'static Method {
    csi::METHODS.iter().find(|method| method.name == name).unwrap_or_else(|| panic!("no {name}"))
}

/// The paths of all fields that are set, also in nested messages: `volume_capability.mount.fs_type`.
/// Of a list of messages the first is looked into.
pub(crate) fn paths(message: &DynamicMessage) -> Vec<(String, FieldDescriptor)> {
    let mut all = Vec::new();
    for (field, value) in message.fields() {
        all.push((field.name().to_owned(), field.clone()));
        let nested = match value {
            Value::Message(nested) => Some(nested),
            Value::List(items) => items.first().and_then(Value::as_message),
            _ => None,
        };
        for (path, field_below) in nested.iter().flat_map(|nested| paths(nested)) {
            all.push((format!("{}.{path}", field.name()), field_below));
        }
    }
    all
}

/// Changes the message that holds the last field of `path`.
pub(crate) fn edit(
    message: &mut DynamicMessage,
    path: &str,
    change: impl FnOnce(&mut DynamicMessage, &FieldDescriptor),
) {
    let (first, rest) = match path.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (path, None),
    };
    let field = message.descriptor().get_field_by_name(first);
    let field = field.unwrap_or_else(|| panic!("no {first} in {}", message.descriptor().name()));
    match rest {
        None => change(message, &field),
        Some(rest) => match message.get_field_mut(&field) {
            Value::Message(nested) => edit(nested, rest, change),
            Value::List(items) => edit(items[0].as_message_mut().unwrap(), rest, change),
            other => panic!("{path}: nothing is below {other:?}"),
        },
    }
}

/// `message` with another value at `path`.
pub(crate) fn with(message: &DynamicMessage, path: &str, value: Value) -> DynamicMessage {
    let mut message = message.clone();
    edit(&mut message, path, |parent, field| parent.set_field(field, value));
    message
}

/// `message` without the field at `path`.
pub(crate) fn without(message: &DynamicMessage, path: &str) -> DynamicMessage {
    let mut message = message.clone();
    edit(&mut message, path, DynamicMessage::clear_field);
    message
}

/// Whether a field is a list of strings.
pub(crate) fn is_text_list(field: &FieldDescriptor) -> bool {
    field.is_list() && field.kind() == Kind::String
}

/// Calls any method with any message; a stream is read to its end.
pub(crate) async fn call(
    client: &Client,
    method: &'static Method,
    request: &DynamicMessage,
) -> Result<Vec<DynamicMessage>, Status> {
    let answers = call_bytes(client, method, request.encode_to_vec()).await?;
    let decoded = answers.iter().map(|bytes| {
        DynamicMessage::decode(descriptor(method.response), bytes.as_slice()).unwrap()
    });
    Ok(decoded.collect())
}

/// The same with bytes.
pub(crate) async fn call_bytes(
    client: &Client,
    method: &'static Method,
    request: Vec<u8>,
) -> Result<Vec<Vec<u8>>, Status> {
    let mut grpc = tonic::client::Grpc::new(client.channel());
    grpc.ready().await.map_err(|e| Status::unknown(e.to_string()))?;
    let path = http::uri::PathAndQuery::from_static(method.path);
    let mut stream = grpc.server_streaming(Request::new(request), path, Bytes).await?.into_inner();
    let mut answers = Vec::new();
    while let Some(answer) = stream.message().await? {
        answers.push(answer);
    }
    Ok(answers)
}

/// The code of a call.
pub(crate) fn code<T>(answer: &Result<T, Status>) -> Code {
    answer.as_ref().map_or_else(Status::code, |_| Code::Ok)
}

/// Bytes as they are.
#[derive(Clone, Copy)]
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        *self
    }
    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        use prost::bytes::BufMut;
        buffer.put_slice(&item);
        Ok(())
    }
    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        use prost::bytes::Buf;
        let mut bytes = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}
