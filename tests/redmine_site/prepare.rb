# Run by Redmine's own `rails runner` on a file as its package made it: a project, its people, two
# fields. Prints what the tests must know of it, as JSON.
Setting.rest_api_enabled = 1
Setting.default_language = "en"
Setting.notified_events = []

fields = { "filter" => true, "none" => false }.map do |name, used|
  field = IssueCustomField.create!(
    name: "Helpdesk ticket (#{name})", field_format: "string",
    is_filter: used, is_for_all: true, tracker_ids: Tracker.pluck(:id)
  )
  [name, field.id]
end
project = Project.create!(
  name: "Helpdesk", identifier: "helpdesk",
  tracker_ids: Tracker.pluck(:id), enabled_module_names: ["issue_tracking"]
)
people = { "hd_itsm" => "Manager", "reporter" => "Reporter", "dlee" => "Developer", "sora" => "Developer" }
users = people.map do |login, role|
  user = User.new(firstname: login, lastname: "X", mail: "#{login}@example.com", language: "en")
  user.login = login
  user.password = user.password_confirmation = "#{login}-password"
  user.save!
  Member.create!(user: user, project: project, roles: [Role.find_by!(name: role)])
  [login, { id: user.id, key: user.api_key }]
end
puts({ fields: fields.to_h, users: users.to_h, statuses: IssueStatus.pluck(:name, :id).to_h }.to_json)
