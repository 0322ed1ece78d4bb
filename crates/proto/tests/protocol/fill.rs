//! Fills messages by reflection, so that nothing stays at its default and each
//! value can be found again in what is printed.

use std::collections::{BTreeSet, HashMap};

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};

use crate::tables;

/// kubelet puts ServiceAccount tokens into the volume context under this key.
pub(crate) const TOKENS_KEY: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// A message with all fields set.
pub(crate) struct Filled {
    pub(crate) message: DynamicMessage,
    /// What must be found in its `Debug` output.
    pub(crate) open: Vec<String>,
    /// What must not.
    pub(crate) secret: Vec<String>,
}

/// `message` filled as often as it takes to have had each case of each oneof.
pub(crate) fn every_case(message: &MessageDescriptor) -> Vec<Filled> {
    (0..most_cases(message))
        .map(|case| {
            let mut filler = Filler {
                case,
                secret_fields: tables::secret_fields(),
                count: 0,
                open: Vec::new(),
                secret: Vec::new(),
            };
            let message = filler.message(message);
            Filled { message, open: filler.open, secret: filler.secret }
        })
        .collect()
}

/// The number of cases of the largest oneof in a message or below it; 1 when
/// there is none.
fn most_cases(message: &MessageDescriptor) -> usize {
    let own = message.oneofs().map(|oneof| oneof.fields().len());
    let below = message.fields().filter_map(|field| match field.kind() {
        Kind::Message(nested) => Some(most_cases(&nested)),
        _ => None,
    });
    own.chain(below).max().unwrap_or(1)
}

struct Filler {
    case: usize,
    secret_fields: BTreeSet<String>,
    count: u32,
    open: Vec<String>,
    secret: Vec<String>,
}

impl Filler {
    fn message(&mut self, descriptor: &MessageDescriptor) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        for field in descriptor.fields() {
            if let Some(oneof) = field.containing_oneof() {
                let chosen = self.case % oneof.fields().len();
                if oneof.fields().nth(chosen) != Some(field.clone()) {
                    continue;
                }
            } else if descriptor.package_name() != "google.protobuf" {
                self.open.push(format!("{}: ", field.name()));
            }
            let value = self.field(&field);
            message.set_field(&field, value);
        }
        message
    }

    fn field(&mut self, field: &FieldDescriptor) -> Value {
        let secret = self.secret_fields.contains(field.full_name());
        if field.is_map() {
            return self.map(field, secret);
        }
        if field.is_list() {
            return Value::List((0..2).map(|_| self.value(field, secret)).collect());
        }
        self.value(field, secret)
    }

    /// Keys are always shown.
    fn map(&mut self, field: &FieldDescriptor, secret: bool) -> Value {
        let mut map = HashMap::new();
        for _ in 0..2 {
            let key = self.text(field, false);
            map.insert(MapKey::String(key), Value::String(self.text(field, secret)));
        }
        self.open.push(TOKENS_KEY.to_owned());
        map.insert(MapKey::String(TOKENS_KEY.to_owned()), Value::String(self.text(field, true)));
        Value::Map(map)
    }

    fn value(&mut self, field: &FieldDescriptor, secret: bool) -> Value {
        match field.kind() {
            Kind::Message(nested) => Value::Message(self.message(&nested)),
            Kind::String => Value::String(self.text(field, secret)),
            kind => {
                assert!(!secret, "{} is secret, but no string", field.full_name());
                match kind {
                    Kind::Bool => {
                        self.open.push("true".to_owned());
                        Value::Bool(true)
                    }
                    Kind::Int32 => Value::I32(i32::try_from(self.number()).unwrap()),
                    Kind::Int64 => Value::I64(self.number()),
                    Kind::Enum(kind) => {
                        let last = kind.values().last().expect("an enum has values");
                        self.open.push(last.name().to_owned());
                        Value::EnumNumber(last.number())
                    }
                    other => {
                        panic!("{} is of a type not in use here: {other:?}", field.full_name())
                    }
                }
            }
        }
    }

    fn number(&mut self) -> i64 {
        self.count += 1;
        let number = 7_000_000 + i64::from(self.count);
        self.open.push(number.to_string());
        number
    }

    fn text(&mut self, field: &FieldDescriptor, secret: bool) -> String {
        self.count += 1;
        let (word, markers) =
            if secret { ("secret", &mut self.secret) } else { ("open", &mut self.open) };
        let text = format!("<{word} {} {}>", field.name(), self.count);
        markers.push(text.clone());
        text
    }
}
